"""Qwen 3.5 and 3.6 with experts: the layers of the dense ones, and in each experts beside an MLP that all tokens go
through, times the sigmoid of a number of each."""

from __future__ import annotations

from dataclasses import replace

from pybatch.model.config import MAX_WIDTH
from pybatch.model.families.experts import SHARED_GGUF_KEYS, softmax_experts
from pybatch.model.families.family import Family, GGUFFamily, Shape
from pybatch.model.families.qwen3_5 import DELTA_KEYS, SINGLE_NAMES, hybrid
from pybatch.model.families.source import Source


def shape(source: Source) -> Shape:
    experts = replace(
        softmax_experts(source, count=256, top_k=8, width=512),
        shared_width=source.integer("shared_expert_intermediate_size", 512, high=MAX_WIDTH),
        shared_gate=True,
        normalize=True,
    )
    return hybrid(source, [experts] * source.num_layers(), kv_heads=2)


FAMILY = Family(
    model_type="qwen3_5_moe_text",
    architecture="Qwen3_5MoeForCausalLM",
    shape=shape,
    names=SINGLE_NAMES,
    gguf=GGUFFamily(architecture="qwen35moe", keys={**DELTA_KEYS, **SHARED_GGUF_KEYS}, tiled_value_heads=True),
)
