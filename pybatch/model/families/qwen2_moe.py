"""Qwen 1.5 and 2 with experts: biases of q, k and v, and beside the experts an MLP that all tokens go through, times
the sigmoid of a number of each."""

from __future__ import annotations

from dataclasses import replace

from pybatch.model.config import MAX_LAYERS, MAX_WIDTH
from pybatch.model.families.experts import SHARED_GGUF_KEYS, chosen_layers, softmax_experts, with_experts
from pybatch.model.families.family import Family, GGUFFamily, Shape
from pybatch.model.families.llama import alike, with_biases, with_windows
from pybatch.model.families.source import Source


def shape(source: Source) -> Shape:
    decoder = alike(source, context=32768, kv_heads=16)
    decoder, count = with_biases(decoder, qkv=source.flag("qkv_bias", True), out=False, mlp=False), len(decoder.layers)
    experts = replace(
        softmax_experts(source, count=60, top_k=4, width=1408),
        shared_width=source.integer("shared_expert_intermediate_size", 5632, high=MAX_WIDTH),
        shared_gate=True,
    )
    return with_experts(with_windows(decoder, _windows(source, count)), experts, chosen_layers(source, count))


def _windows(source: Source, count: int) -> list[int]:
    """Of every other layer below max_window_layers, or as layer_types says."""
    window = source.window(absent=4096)
    first = source.integer("max_window_layers", 28, low=0, high=MAX_LAYERS)
    if not source.flag("use_sliding_window"):
        window = 0
    kinds = source.layer_types(count, window)
    if kinds is None:
        return [window if (layer + 1) % 2 and layer < first else 0 for layer in range(count)]
    return [window if kind == "sliding_attention" else 0 for kind in kinds]


FAMILY = Family(
    model_type="qwen2_moe",
    architecture="Qwen2MoeForCausalLM",
    shape=shape,
    gguf=GGUFFamily(architecture="qwen2moe", keys=SHARED_GGUF_KEYS),
)
