"""GPT-2: learned positions in place of rotated ones, LayerNorm, MLPs without gates, and matrices with a row for each
input."""

from __future__ import annotations

from dataclasses import replace

from pybatch.model.config import NormConfig
from pybatch.model.families.family import Family, GGUFFamily, Shape
from pybatch.model.families.gptj import KEYS
from pybatch.model.families.llama import alike, with_biases
from pybatch.model.families.source import Source
from pybatch.model.rope import NO_ROPE


def shape(source: Source) -> Shape:
    source.get("reorder_and_upcast_attn")  # which changes how scores are rounded
    norm = NormConfig(kind="layer", eps=source.norm_eps("layer_norm_eps", 1e-5), bias=True)
    decoder = alike(
        source,
        context=1024,
        tied=True,
        activation="gelu_new",
        gated=False,
        norm=norm,
        rope=NO_ROPE,
        mlp_width=4 * source.hidden_size(),
    )
    decoder = with_biases(decoder, qkv=True, out=True, mlp=True)
    scaled, by_layer = source.flag("scale_attn_weights", True), source.flag("scale_attn_by_inverse_layer_idx")
    scale = (source.hidden_size() // source.num_heads()) ** -0.5 if scaled else 1.0
    layers = (
        layer.with_attention(scale=scale / (index + 1 if by_layer else 1)) for index, layer in enumerate(decoder.layers)
    )
    return replace(decoder, layers=tuple(layers), learned_positions=decoder.context)


FAMILY = Family(
    model_type="gpt2",
    architecture="GPT2LMHeadModel",
    shape=shape,
    names={
        "embedding": "transformer.wte",
        "positions": "transformer.wpe",
        "layer": "transformer.h.{}",
        "final_norm": "transformer.ln_f",
        "mixer_norm": "ln_1",
        "qkv": "attn.c_attn",
        "attention_out": "attn.c_proj",
        "mlp_norm": "ln_2",
        "up": "mlp.c_fc",
        "down": "mlp.c_proj",
    },
    keys=KEYS,
    by_input=True,
    gguf=GGUFFamily(architecture="gpt2", keys={"layer_norm_eps": "attention.layer_norm_epsilon"}),
)
