"""InternLM 3: a Llama whose biases have names of their own."""

from __future__ import annotations

from pybatch.model.families.family import Family, GGUFFamily, Shape
from pybatch.model.families.llama import alike, with_biases
from pybatch.model.families.source import Source


def shape(source: Source) -> Shape:
    decoder = alike(source, context=32768, kv_heads=2, head_dim=128, eps=1e-5)
    attention = source.flag("qkv_bias", source.flag("attention_bias"))
    return with_biases(decoder, qkv=attention, out=attention, mlp=source.flag("bias", source.flag("mlp_bias")))


FAMILY = Family(
    model_type="internlm3",
    architecture="InternLM3ForCausalLM",
    shape=shape,
    gguf=GGUFFamily(architecture="llama", adjacent_pairs=True),
)
