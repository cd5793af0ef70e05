"""Qwen 2 and 2.5: biases of q, k and v, and windows by choice."""

from __future__ import annotations

from dataclasses import replace

from pybatch.model.config import MAX_LAYERS
from pybatch.model.families.family import Family, GGUFFamily, Shape
from pybatch.model.families.llama import alike, with_windows
from pybatch.model.families.source import Source

GGUF_WINDOWS = {"use_sliding_window": True, "max_window_layers": 0}  # where a file names a window


def shape(source: Source) -> Shape:
    decoder = with_chosen_windows(source, alike(source, context=32768, kv_heads=32))
    return replace(
        decoder,
        layers=tuple(layer.with_attention(bias=True, out_bias=False) for layer in decoder.layers),
    )


def with_chosen_windows(source: Source, decoder: Shape) -> Shape:
    """Windows from layer max_window_layers on, or as layer_types says."""
    count = len(decoder.layers)
    window = source.window(absent=4096)
    if not source.flag("use_sliding_window"):
        window = 0
    first = source.integer("max_window_layers", 28, low=0, high=MAX_LAYERS)
    kinds = source.layer_types(count, window)
    if kinds is None:
        return with_windows(decoder, [window if layer >= first else 0 for layer in range(count)])
    return with_windows(decoder, [window if kind == "sliding_attention" else 0 for kind in kinds])


FAMILY = Family(
    model_type="qwen2",
    architecture="Qwen2ForCausalLM",
    shape=shape,
    gguf=GGUFFamily(architecture="qwen2", constants=GGUF_WINDOWS),
)
