"""Falcon 1 and 2: LayerNorm, an MLP without gates beside the attention or behind it, and q, k and v in one tensor,
those of a key-value head together."""

from __future__ import annotations

from dataclasses import replace

from pybatch.model.config import MAX_HEADS, NormConfig
from pybatch.model.errors import ModelError
from pybatch.model.families.family import Family, GGUFFamily, Shape
from pybatch.model.families.llama import alike, with_biases
from pybatch.model.families.source import Source


def shape(source: Source) -> Shape:
    if source.flag("alibi"):
        raise ModelError(f"{source.where}: alibi: expected false: biases of scores by distance are not known here")
    norm = NormConfig(kind="layer", eps=source.norm_eps("layer_norm_epsilon", 1e-5), bias=True)
    heads, grouped = source.num_heads(), source.flag("new_decoder_architecture")
    of_one_key = source.flag("multi_query", True) and not grouped
    kv_heads = source.integer("num_kv_heads", heads, high=MAX_HEADS, nullable=True)
    decoder = alike(
        source,
        context=2048,
        kv_heads=1 if of_one_key else kv_heads if grouped else heads,
        tied=True,
        activation="gelu",
        gated=False,
        norm=norm,
        mlp_width=4 * source.hidden_size(),
    )
    bias, parallel = source.flag("bias"), source.flag("parallel_attn", True)
    if grouped and not parallel:
        raise ModelError(f"{source.where}: parallel_attn: expected true beside new_decoder_architecture")
    norms = source.integer("num_ln_in_parallel_attn", 2 if grouped else 1, high=2, nullable=True)
    if norms == 2 and not grouped:
        raise ModelError(f"{source.where}: num_ln_in_parallel_attn: expected 1 without new_decoder_architecture")
    decoder = with_biases(decoder, qkv=bias, out=bias, mlp=bias)
    one_norm = parallel and norms == 1
    layers = tuple(replace(layer, parallel=parallel, one_norm=one_norm) for layer in decoder.layers)
    return replace(decoder, layers=layers)


FAMILY = Family(
    model_type="falcon",
    architecture="FalconForCausalLM",
    shape=shape,
    names={
        "embedding": "transformer.word_embeddings",
        "layer": "transformer.h.{}",
        "final_norm": "transformer.ln_f",
        "qkv_of_heads": "self_attention.query_key_value",
        "attention_out": "self_attention.dense",
        "up": "mlp.dense_h_to_4h",
        "down": "mlp.dense_4h_to_h",
        "mixer_norm_of_two": "ln_attn",
        "mlp_norm_of_two": "ln_mlp",
    },
    keys={"hidden_act": "activation", "intermediate_size": "ffn_hidden_size"},
    gguf=GGUFFamily(
        architecture="falcon",
        keys={"layer_norm_epsilon": "attention.layer_norm_epsilon", "num_kv_heads": "attention.head_count_kv"},
        constants={"new_decoder_architecture": True},  # of which the others are special cases
    ),
    other_names={"mixer_norm": "mixer_norm_of_two", "mlp_norm": "mlp_norm_of_two"},
)
