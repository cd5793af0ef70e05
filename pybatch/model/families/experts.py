"""What families with mixtures of experts have in common."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from pybatch.model.config import MAX_EXPERTS, MAX_LAYERS, MAX_WIDTH, MoEConfig
from pybatch.model.errors import ModelError
from pybatch.model.families.family import Shape
from pybatch.model.families.source import Source
from pybatch.model.fields import short

GGUF_KEYS = {
    "num_experts": "expert_count",
    "num_experts_per_tok": "expert_used_count",
    "moe_intermediate_size": "expert_feed_forward_length",
}


def softmax_experts(source: Source, *, count: int, top_k: int, width: int) -> MoEConfig:
    """Experts chosen and weighted by a softmax over all. count, top_k, width: where the config says nothing."""
    return MoEConfig(
        experts=num_experts(source, count),
        top_k=source.integer("num_experts_per_tok", top_k, high=MAX_EXPERTS),
        width=source.integer("moe_intermediate_size", width, high=MAX_WIDTH),
        activation=source.activation(),
        normalize=source.flag("norm_topk_prob"),
    )


def num_experts(source: Source, absent: int) -> int:
    """Which transformers calls by two names."""
    for key in ("num_experts", "num_local_experts", "n_routed_experts"):
        if key in source:
            return source.integer(key, high=MAX_EXPERTS)
    return absent


def with_experts(decoder: Shape, experts: MoEConfig, sparse: Sequence[bool]) -> Shape:
    """sparse: which layers have them."""
    layers = zip(decoder.layers, sparse, strict=True)
    return replace(decoder, layers=tuple(replace(layer, mlp=experts) if chosen else layer for layer, chosen in layers))


def chosen_layers(source: Source, count: int) -> list[bool]:
    """Every decoder_sparse_step-th layer has experts, but for those in mlp_only_layers."""
    step = source.integer("decoder_sparse_step", 1, high=MAX_LAYERS)
    dense = source.get("mlp_only_layers") or []
    if not isinstance(dense, list) or not all(type(layer) is int for layer in dense):
        raise ModelError(f"{source.where}: mlp_only_layers: expected a list of layers, got {short(dense)}")
    return [layer not in dense and (layer + 1) % step == 0 for layer in range(count)]
