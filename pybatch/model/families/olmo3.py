"""OLMo 3: an OLMo 2 whose layers have windows but for every fourth, which alone is stretched."""

from __future__ import annotations

from dataclasses import replace

from pybatch.model.families.family import Family, GGUFFamily, Shape
from pybatch.model.families.llama import alike
from pybatch.model.families.olmo2 import NAMES
from pybatch.model.families.source import Source

THETA = 500000.0


def shape(source: Source) -> Shape:
    head_dim, context = source.head_dim(), source.context(2048)
    whole = source.rope_of_kind("full_attention", head_dim, context, theta=THETA)
    near = source.rope_of_kind("sliding_attention", head_dim, context, theta=whole.theta)
    decoder = alike(source, context=2048, eps=1e-5, qk_norm=True, rope=whole)
    plain = decoder.layers[0].with_attention(qk_norm_over="all")
    count, window = len(decoder.layers), source.window(absent=4096)
    kinds = source.layer_types(count, window)
    if kinds is None:
        kinds = ["full_attention" if (layer + 1) % 4 == 0 else "sliding_attention" for layer in range(count)]
    layers = {"full_attention": plain, "sliding_attention": plain.with_attention(rope=near, window=window)}
    return replace(decoder, layers=tuple(layers[kind] for kind in kinds))


FAMILY = Family(
    model_type="olmo3",
    architecture="Olmo3ForCausalLM",
    shape=shape,
    names=NAMES,
    gguf=GGUFFamily(architecture="olmo2"),
)
