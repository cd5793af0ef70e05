"""Apertus: norms of q and k a head, and an MLP without gates whose activation each layer has learned."""

from __future__ import annotations

from pybatch.model.families.family import Family, GGUFFamily, Shape
from pybatch.model.families.llama import alike
from pybatch.model.families.source import Source


def shape(source: Source) -> Shape:
    source.expect(qk_norm=True, post_norm=False)  # what the makers' own configs say of what is always so
    return alike(source, context=65536, theta=12e6, eps=1e-5, qk_norm=True, activation="xielu", gated=False)


FAMILY = Family(
    model_type="apertus",
    architecture="ApertusForCausalLM",
    shape=shape,
    names={"mixer_norm": "attention_layernorm", "mlp_norm": "feedforward_layernorm"},
    defaults={
        "rope_parameters": {
            "rope_type": "llama3",
            "rope_theta": 12000000.0,
            "factor": 8.0,
            "original_max_position_embeddings": 8192,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
        }
    },
    gguf=GGUFFamily(architecture="apertus"),
)
