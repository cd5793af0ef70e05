"""SmolLM 3: no rotation in every fourth layer."""

from __future__ import annotations

from pybatch.model.config import MAX_LAYERS
from pybatch.model.families.family import Family, GGUFFamily, Shape
from pybatch.model.families.llama import alike, with_windows, without_rope
from pybatch.model.families.source import Source


def shape(source: Source) -> Shape:
    source.get("max_window_layers")  # which transformers does not read here
    decoder = alike(source, context=32768, kv_heads=4, theta=2e6, tied=True)
    count = len(decoder.layers)
    interval = source.integer("no_rope_layer_interval", 4, high=MAX_LAYERS)
    turns = source.flags("no_rope_layers", count)  # 1 where there is rotation
    if turns is None:
        turns = [(layer + 1) % interval != 0 for layer in range(count)]
    window = source.window()
    if not source.flag("use_sliding_window"):
        window = 0
    kinds = source.layer_types(count, window)
    if kinds is None:
        windows = [0 if turn else window for turn in turns]
    else:
        windows = [window if kind == "sliding_attention" else 0 for kind in kinds]
    return with_windows(without_rope(decoder, [not turn for turn in turns]), windows)


FAMILY = Family(
    model_type="smollm3",
    architecture="SmolLM3ForCausalLM",
    shape=shape,
    gguf=GGUFFamily(architecture="smollm3", adjacent_pairs=True),
)
