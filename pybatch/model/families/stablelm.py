"""StableLM: LayerNorm, and a quarter of each head turns."""

from __future__ import annotations

from pybatch.model.config import NormConfig
from pybatch.model.families.family import Family, GGUFFamily, Shape
from pybatch.model.families.llama import alike, with_biases
from pybatch.model.families.source import Source


def shape(source: Source) -> Shape:
    norm = NormConfig(kind="layer", eps=source.norm_eps("layer_norm_eps", 1e-5), bias=True)
    decoder = alike(source, context=4096, kv_heads=32, partial=0.25, norm=norm)
    return with_biases(decoder, qkv=source.flag("use_qkv_bias"), out=False, mlp=False)


FAMILY = Family(
    model_type="stablelm",
    architecture="StableLmForCausalLM",
    shape=shape,
    gguf=GGUFFamily(architecture="stablelm", keys={"layer_norm_eps": "attention.layer_norm_epsilon"}),
)
