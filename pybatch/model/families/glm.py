"""GLM-4 (2024): half of each head turns, in adjacent pairs; gate and up are one tensor."""

from __future__ import annotations

from pybatch.model.families.family import Family, GGUFFamily, Shape
from pybatch.model.families.llama import alike, with_biases
from pybatch.model.families.source import Source

NAMES = {"gate_up": "mlp.gate_up_proj"}


def shape(source: Source) -> Shape:
    decoder = alike(source, context=131072, kv_heads=2, head_dim=128, partial=0.5, eps=1.5625e-7)
    return with_biases(decoder, qkv=source.flag("attention_bias", True), out=False, mlp=False)


FAMILY = Family(
    model_type="glm",
    architecture="GlmForCausalLM",
    shape=shape,
    names=NAMES,
    adjacent_pairs=True,
    gguf=GGUFFamily(architecture="chatglm", adjacent_pairs=True),
)
