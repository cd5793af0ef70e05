"""Helium: a Llama whose adjacent pairs turn."""

from __future__ import annotations

from pybatch.model.families.family import Family, Shape
from pybatch.model.families.llama import alike, with_biases
from pybatch.model.families.source import Source


def shape(source: Source) -> Shape:
    decoder = alike(source, context=4096, kv_heads=20, head_dim=128, theta=100000.0, eps=1e-8)
    return with_biases(decoder, qkv=source.flag("attention_bias"), out=False, mlp=source.flag("mlp_bias"))


FAMILY = Family(model_type="helium", architecture="HeliumForCausalLM", shape=shape, adjacent_pairs=True)
