"""Mixtral: Mistral with experts."""

from __future__ import annotations

from dataclasses import replace

from pybatch.model.families.experts import GGUF_KEYS, softmax_experts, with_experts
from pybatch.model.families.family import Family, GGUFFamily, Shape
from pybatch.model.families.llama import alike, with_windows
from pybatch.model.families.source import Source


def shape(source: Source) -> Shape:
    decoder = alike(source, context=131072, kv_heads=8, theta=1e6, eps=1e-5)
    count = len(decoder.layers)
    source.get("router_jitter_noise")  # of training
    experts = replace(softmax_experts(source, count=8, top_k=2, width=0), width=source.mlp_width(), normalize=True)
    return with_experts(with_windows(decoder, [source.window()] * count), experts, [True] * count)


FAMILY = Family(
    model_type="mixtral",
    architecture="MixtralForCausalLM",
    shape=shape,
    names={
        "router": "block_sparse_moe.gate",
        "expert_gate": "block_sparse_moe.experts.{}.w1",
        "expert_up": "block_sparse_moe.experts.{}.w3",
        "expert_down": "block_sparse_moe.experts.{}.w2",
    },
    gguf=GGUFFamily(architecture="llama", keys=GGUF_KEYS, adjacent_pairs=True),
)
