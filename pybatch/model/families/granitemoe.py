"""Granite 3 with experts: a Granite whose MLPs are mixtures of experts."""

from __future__ import annotations

from pybatch.model.config import MAX_EXPERTS, MAX_WIDTH, MoEConfig
from pybatch.model.families.experts import num_experts, with_experts
from pybatch.model.families.family import Family, Shape
from pybatch.model.families.granite import with_multipliers
from pybatch.model.families.llama import alike
from pybatch.model.families.source import Source

NAMES = {
    "router": "block_sparse_moe.router.layer",
    "experts_gate_up": "block_sparse_moe.input_linear.weight",
    "experts_down": "block_sparse_moe.output_linear.weight",
    "shared_gate_up": "shared_mlp.input_linear",
    "shared_down": "shared_mlp.output_linear",
}


def shape(source: Source) -> Shape:
    return _shape(source, shared_width=0)


def shape_with_shared(source: Source) -> Shape:
    """Beside an MLP that all tokens go through."""
    return _shape(source, shared_width=source.integer("shared_intermediate_size", 0, low=0, high=MAX_WIDTH))


def _shape(source: Source, shared_width: int) -> Shape:
    decoder = with_multipliers(source, alike(source, context=2048))
    experts = MoEConfig(
        experts=num_experts(source, 8),
        top_k=source.integer("num_experts_per_tok", 2, high=MAX_EXPERTS),
        width=source.mlp_width(),
        activation=source.activation(),
        scoring="top_k_softmax",
        scale=decoder.scales.residual,
        shared_width=shared_width,
    )
    return with_experts(decoder, experts, [True] * len(decoder.layers))


FAMILY = Family(model_type="granitemoe", architecture="GraniteMoeForCausalLM", shape=shape, names=NAMES)
SHARED = Family(
    model_type="granitemoeshared", architecture="GraniteMoeSharedForCausalLM", shape=shape_with_shared, names=NAMES
)
