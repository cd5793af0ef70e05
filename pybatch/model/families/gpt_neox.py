"""GPT-NeoX and Pythia: an MLP without gates beside the attention, and q, k and v head by head in one tensor."""

from __future__ import annotations

from dataclasses import replace

from pybatch.model.config import NormConfig
from pybatch.model.families.family import Family, GGUFFamily, Shape
from pybatch.model.families.llama import alike, with_biases
from pybatch.model.families.source import Source


def shape(source: Source) -> Shape:
    norm = NormConfig(kind="layer", eps=source.norm_eps("layer_norm_eps", 1e-5), bias=True)
    decoder = alike(source, context=2048, partial=0.25, activation="gelu", gated=False, norm=norm)
    attention, parallel = source.flag("attention_bias", True), source.flag("use_parallel_residual", True)
    decoder = with_biases(decoder, qkv=attention, out=attention, mlp=True)
    return replace(decoder, layers=tuple(replace(layer, parallel=parallel) for layer in decoder.layers))


FAMILY = Family(
    model_type="gpt_neox",
    architecture="GPTNeoXForCausalLM",
    shape=shape,
    names={
        "embedding": "gpt_neox.embed_in",
        "layer": "gpt_neox.layers.{}",
        "final_norm": "gpt_neox.final_layer_norm",
        "lm_head": "embed_out",
        "qkv_of_heads": "attention.query_key_value",
        "attention_out": "attention.dense",
        "up": "mlp.dense_h_to_4h",
        "down": "mlp.dense_4h_to_h",
    },
    keys={"partial_rotary_factor": "rotary_pct", "rope_theta": "rotary_emb_base"},
    gguf=GGUFFamily(
        architecture="gptneox",
        keys={
            "layer_norm_eps": "attention.layer_norm_epsilon",
            "use_parallel_residual": "use_parallel_residual",
        },
    ),
)
