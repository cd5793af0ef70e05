"""Command R7B and A: a Command R whose layers have windows, but for every fourth, which does not turn."""

from __future__ import annotations

from pybatch.model.config import MAX_LAYERS
from pybatch.model.families.cohere import KEYS, NAMES, side_by_side
from pybatch.model.families.family import Family, GGUFFamily, Shape
from pybatch.model.families.llama import with_windows, without_rope
from pybatch.model.families.source import Source


def shape(source: Source) -> Shape:
    decoder = side_by_side(source, theta=10000.0)
    source.expect(  # what Cohere's own configs say of what is always so
        position_embedding_type="rope_gptj",
        rotary_pct=1.0,
        use_gated_activation=True,
        use_parallel_block=True,
        order_of_interleaved_layers="local_attn_first",
    )
    for again in ("layer_switch", "use_embedding_sharing"):  # sliding_window_pattern, tie_word_embeddings
        source.get(again)
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
