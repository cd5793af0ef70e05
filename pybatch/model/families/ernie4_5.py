"""ERNIE 4.5, dense: adjacent pairs turn, and one flag says of all biases."""

from __future__ import annotations

from pybatch.model.families.family import Family, GGUFFamily, Shape
from pybatch.model.families.llama import alike, with_biases
from pybatch.model.families.source import Source


def shape(source: Source) -> Shape:
    decoder = alike(source, context=131072, kv_heads=2, head_dim=128, theta=500000.0, eps=1e-5, tied=True)
    bias = source.flag("use_bias")
    return with_biases(decoder, qkv=bias, out=bias, mlp=bias)


FAMILY = Family(
    model_type="ernie4_5",
    architecture="Ernie4_5ForCausalLM",
    shape=shape,
    adjacent_pairs=True,
    gguf=GGUFFamily(architecture="ernie4_5", adjacent_pairs=True),
)
