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
SHARED_GGUF_KEYS = {**GGUF_KEYS, "shared_expert_intermediate_size": "expert_shared_feed_forward_length"}
SIGMOID_GGUF_KEYS = {
    **GGUF_KEYS,
    "first_k_dense_replace": "leading_dense_block_count",
    "n_shared_experts": "expert_shared_count",
    "routed_scaling_factor": "expert_weights_scale",
    "norm_topk_prob": "expert_weights_norm",
    "scoring": "expert_gating_func",
    "n_group": "expert_group_count",
    "topk_group": "expert_group_used_count",
}
GGUF_SCORINGS = {1: "softmax", 2: "sigmoid"}
SHARED_NAMES = {
    "shared_gate": "mlp.shared_experts.gate_proj",
    "shared_up": "mlp.shared_experts.up_proj",
    "shared_down": "mlp.shared_experts.down_proj",
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


def sigmoid_experts(
    source: Source,
    *,
    count: int,
    top_k: int,
    width: int,
    groups: int = 1,
    top_groups: int = 1,
    normalize: bool = False,
    scale: float = 1.0,
) -> MoEConfig:
    """Experts chosen by their sigmoids plus a correction, in groups, beside an MLP that all tokens go through
    (DeepSeek-V3). What is given is for where the config says nothing."""
    experts = softmax_experts(source, count=count, top_k=top_k, width=width)
    return replace(
        experts,
        scoring="sigmoid",
        correction=True,
        groups=source.integer("n_group", groups, high=MAX_EXPERTS, nullable=True),
        top_groups=source.integer("topk_group", top_groups, high=MAX_EXPERTS, nullable=True),
        group_best=2,
        normalize=source.flag("norm_topk_prob", normalize),
        scale=source.number("routed_scaling_factor", scale),
        shared_width=experts.width * source.integer("n_shared_experts", 1, low=0, high=MAX_EXPERTS),
    )


def gguf_scoring(source: Source) -> str | None:
    """What a GGUF file says of how experts are chosen; None where nothing does."""
    return GGUF_SCORINGS[source.choice("scoring", tuple(GGUF_SCORINGS))] if "scoring" in source else None


def dense_or_sparse(source: Source, count: int) -> list[bool] | None:
    """Which layers have experts, as mlp_layer_types says; None if it is not there."""
    kinds = source.get("mlp_layer_types")
    if kinds is None:
        return None
    if not isinstance(kinds, list) or len(kinds) != count or not all(kind in ("dense", "sparse") for kind in kinds):
        raise ModelError(f"{source.where}: mlp_layer_types: expected dense or sparse for each of {count} layers")
    return [kind == "sparse" for kind in kinds]


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
