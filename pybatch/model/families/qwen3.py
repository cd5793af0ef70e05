"""Qwen 3, dense: norms of q and k a head."""

from __future__ import annotations

from pybatch.model.families.family import Family, GGUFFamily, Shape
from pybatch.model.families.llama import alike
from pybatch.model.families.qwen2 import GGUF_WINDOWS, with_chosen_windows
from pybatch.model.families.source import Source


def shape(source: Source) -> Shape:
    return with_chosen_windows(source, alike(source, context=32768, kv_heads=32, head_dim=128, qk_norm=True))


FAMILY = Family(
    model_type="qwen3",
    architecture="Qwen3ForCausalLM",
    shape=shape,
    gguf=GGUFFamily(architecture="qwen3", constants=GGUF_WINDOWS),
)
