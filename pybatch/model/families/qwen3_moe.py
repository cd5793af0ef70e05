"""Qwen 3 with experts: norms of q and k a head."""

from __future__ import annotations

from pybatch.model.families.experts import GGUF_KEYS, chosen_layers, softmax_experts, with_experts
from pybatch.model.families.family import Family, GGUFFamily, Shape
from pybatch.model.families.llama import alike, with_windows
from pybatch.model.families.source import Source


def shape(source: Source) -> Shape:
    decoder = alike(source, context=32768, kv_heads=4, qk_norm=True)
    count, window = len(decoder.layers), source.window(absent=4096)
    source.get("max_window_layers")  # which transformers does not read here
    decoder = with_windows(decoder, [window if source.flag("use_sliding_window") else 0] * count)
    experts = softmax_experts(source, count=128, top_k=8, width=768)
    return with_experts(decoder, experts, chosen_layers(source, count))


FAMILY = Family(
    model_type="qwen3_moe",
    architecture="Qwen3MoeForCausalLM",
    shape=shape,
    gguf=GGUFFamily(architecture="qwen3moe", keys=GGUF_KEYS, constants={"norm_topk_prob": True}),
)
