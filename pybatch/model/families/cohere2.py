"""Command R7B and A: a Command R whose layers have windows, but for every fourth, which does not turn."""

from __future__ import annotations

from pybatch.model.config import MAX_LAYERS
from pybatch.model.families.cohere import KEYS, NAMES, side_by_side
from pybatch.model.families.family import Family, GGUFFamily, Shape
from pybatch.model.families.llama import with_windows, without_rope
from pybatch.model.families.source import Source


def shape(source: Source) -> Shape:
    decoder = side_by_side(source, theta=10000.0)
    source.get("head_dim")  # always that of hidden_size / num_attention_heads
    count, window = len(decoder.layers), source.window(absent=4096)
    kinds = source.layer_types(count, window)
    period = source.integer("sliding_window_pattern", 4, high=MAX_LAYERS)
    if kinds is None:
        kinds = ["sliding_attention" if (layer + 1) % period else "full_attention" for layer in range(count)]
    sees_all = [kind == "full_attention" for kind in kinds]
    return with_windows(without_rope(decoder, sees_all), [0 if each else window for each in sees_all])


FAMILY = Family(
    model_type="cohere2",
    architecture="Cohere2ForCausalLM",
    shape=shape,
    names=NAMES,
    adjacent_pairs=True,
    gguf=GGUFFamily(architecture="cohere2", keys=KEYS, adjacent_pairs=True),
)
