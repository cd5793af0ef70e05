"""Command R: attention and MLP side by side behind one LayerNorm, adjacent pairs turn, logits are scaled. In Command R+
each head has a norm of its own."""

from __future__ import annotations

from dataclasses import replace

from pybatch.model.config import NormConfig, Scales
from pybatch.model.families.family import Family, GGUFFamily, Shape
from pybatch.model.families.llama import alike, with_biases
from pybatch.model.families.source import Source

NAMES = {"mlp_norm": "input_layernorm"}
KEYS = {"layer_norm_eps": "attention.layer_norm_epsilon", "logit_scale": "logit_scale"}  # of GGUF


def shape(source: Source) -> Shape:
    decoder = side_by_side(source, theta=500000.0)
    own_norms = source.flag("use_qk_norm")
    layers = tuple(layer.with_attention(qk_norm=own_norms, qk_norm_over="own") for layer in decoder.layers)
    return replace(decoder, layers=layers)


def side_by_side(source: Source, theta: float) -> Shape:
    norm = NormConfig(kind="layer", eps=source.norm_eps("layer_norm_eps", 1e-5))
    decoder = alike(source, context=8192, theta=theta, tied=True, norm=norm)
    bias = source.flag("attention_bias")
    decoder = with_biases(decoder, qkv=bias, out=bias, mlp=False)
    return replace(
        decoder,
        layers=tuple(replace(layer, parallel=True) for layer in decoder.layers),
        scales=Scales(logits=source.number("logit_scale", 0.0625)),
    )


FAMILY = Family(
    model_type="cohere",
    architecture="CohereForCausalLM",
    shape=shape,
    names=NAMES,
    adjacent_pairs=True,
    gguf=GGUFFamily(architecture="command-r", keys=KEYS, adjacent_pairs=True),
)
