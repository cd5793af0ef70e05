"""Qwen3-Next: the layers of Qwen 3.5, whose projections are grouped by key heads, and experts in those chosen."""

from __future__ import annotations

from dataclasses import replace

from pybatch.model.config import MAX_WIDTH
from pybatch.model.families.experts import SHARED_GGUF_KEYS, chosen_layers, softmax_experts
from pybatch.model.families.family import Family, GGUFFamily, Shape
from pybatch.model.families.qwen3_5 import DELTA_KEYS, NAMES, hybrid, mlp
from pybatch.model.families.source import Source


def shape(source: Source) -> Shape:
    count, dense = source.num_layers(), mlp(source)
    if source.get("num_experts") == 0:
        source.asked |= EXPERT_KEYS
        return hybrid(source, [dense] * count, kv_heads=2)
    experts = replace(
        softmax_experts(source, count=512, top_k=10, width=512),
        normalize=source.flag("norm_topk_prob", True),
        shared_width=source.integer("shared_expert_intermediate_size", 512, high=MAX_WIDTH),
        shared_gate=True,
    )
    sparse = chosen_layers(source, count)
    return hybrid(source, [experts if chosen else dense for chosen in sparse], kv_heads=2)


EXPERT_KEYS = {
    "moe_intermediate_size",
    "shared_expert_intermediate_size",
    "num_experts_per_tok",
    "norm_topk_prob",
    "decoder_sparse_step",
    "mlp_only_layers",
}
FAMILY = Family(
    model_type="qwen3_next",
    architecture="Qwen3NextForCausalLM",
    shape=shape,
    gguf=GGUFFamily(architecture="qwen3next", keys={**DELTA_KEYS, **SHARED_GGUF_KEYS}),
    names={**NAMES, "delta_qkvz": "linear_attn.in_proj_qkvz", "delta_ba": "linear_attn.in_proj_ba"},
)
