"""Ministral: a Mistral that says of each layer whether it has a window."""

from __future__ import annotations

from pybatch.model.families.family import Family, Shape
from pybatch.model.families.llama import alike, with_windows
from pybatch.model.families.source import Source


def shape(source: Source) -> Shape:
    decoder = alike(source, context=131072, kv_heads=8)
    count, window = len(decoder.layers), source.window(absent=4096)
    kinds = source.layer_types(count, window)
    if kinds is None:
        return with_windows(decoder, [window] * count)
    return with_windows(decoder, [window if kind == "sliding_attention" else 0 for kind in kinds])


FAMILY = Family(model_type="ministral", architecture="MinistralForCausalLM", shape=shape)
