"""Granite 3 with experts: a Granite whose MLPs are mixtures of experts, or such beside an MLP that all tokens go
through."""

from __future__ import annotations

from pybatch.model.config import MAX_EXPERTS, MAX_WIDTH, MoEConfig
from pybatch.model.families.experts import num_experts, with_experts
from pybatch.model.families.family import Family, GGUFFamily, Shape
from pybatch.model.families.granite import GGUF_KEYS as GRANITE_KEYS
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
    decoder = with_multipliers(source, alike(source, context=2048))
    experts = MoEConfig(
        experts=num_experts(source, 8),
        top_k=source.integer("num_experts_per_tok", 2, high=MAX_EXPERTS),
        width=source.mlp_width(),
        activation=source.activation(),
        scoring="top_k_softmax",
        scale=decoder.scales.residual,
        shared_width=source.integer("shared_intermediate_size", 0, low=0, high=MAX_WIDTH),
    )
    return with_experts(decoder, experts, [True] * len(decoder.layers))


GGUF = GGUFFamily(
    architecture="granitemoe",
    keys={
        "num_experts": "expert_count",
        "num_experts_per_tok": "expert_used_count",
        **GRANITE_KEYS,
    },
    adjacent_pairs=True,
    stacked={"shared_gate_up": ("shared_gate", "shared_up")},
)
FAMILY = Family(model_type="granitemoe", architecture="GraniteMoeForCausalLM", shape=shape, names=NAMES, gguf=GGUF)
SHARED = Family(
    model_type="granitemoeshared", architecture="GraniteMoeSharedForCausalLM", shape=shape, names=NAMES, gguf=GGUF
)
