"""EXAONE 4: norms behind the blocks, norms of q and k a head, and no rotation in layers that see all."""

from __future__ import annotations

from pybatch.model.families.family import Family, GGUFFamily, Shape
from pybatch.model.families.llama import alike, with_windows, without_rope
from pybatch.model.families.olmo2 import NAMES
from pybatch.model.families.source import Source


def shape(source: Source) -> Shape:
    source.expect(reorder_qk_norm=True)  # what LG's own configs say of what is always so
    source.get("max_window_layers")  # which transformers does not read here
    decoder = alike(source, context=2048, kv_heads=32, eps=1e-5, qk_norm=True)
    count, window = len(decoder.layers), source.window(absent=4096)
    kinds = source.layer_types(count, window)
    if kinds is None and window:
        period = source.integer("sliding_window_pattern", 4, high=count)
        kinds = ["sliding_attention" if (layer + 1) % period else "full_attention" for layer in range(count)]
    source.get("sliding_window_pattern")  # which layer_types says again
    if not window or kinds is None:  # the smaller models: all see all, and all turn
        return decoder
    sees_all = [kind == "full_attention" for kind in kinds]
    return with_windows(without_rope(decoder, sees_all), [0 if each else window for each in sees_all])


FAMILY = Family(
    model_type="exaone4",
    architecture="Exaone4ForCausalLM",
    shape=shape,
    names=NAMES,
    gguf=GGUFFamily(architecture="exaone4"),
)
