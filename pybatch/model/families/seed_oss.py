"""Seed-OSS: a Llama with biases of q, k and v."""

from __future__ import annotations

from pybatch.model.families.family import Family, GGUFFamily, Shape
from pybatch.model.families.llama import alike, with_biases
from pybatch.model.families.source import Source


def shape(source: Source) -> Shape:
    decoder = alike(source, context=524288, kv_heads=8, head_dim=128)
    return with_biases(
        decoder,
        qkv=source.flag("attention_bias", True),
        out=source.flag("attention_out_bias"),
        mlp=source.flag("mlp_bias"),
    )


FAMILY = Family(
    model_type="seed_oss",
    architecture="SeedOssForCausalLM",
    shape=shape,
    gguf=GGUFFamily(architecture="seed_oss"),
)
