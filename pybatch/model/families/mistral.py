"""Mistral: a Llama whose layers all have a sliding window."""

from __future__ import annotations

from pybatch.model.families.family import Family, GGUFFamily, Shape
from pybatch.model.families.llama import alike, with_windows
from pybatch.model.families.source import Source


def shape(source: Source) -> Shape:
    decoder = alike(source, context=131072, kv_heads=8)
    windows = [source.window(absent=4096)] * len(decoder.layers)
    source.expect_layer_types(windows)
    return with_windows(decoder, windows)


FAMILY = Family(
    model_type="mistral",
    architecture="MistralForCausalLM",
    shape=shape,
    gguf=GGUFFamily(architecture="llama", adjacent_pairs=True),
)
