"""DeepSeek-V2 and V3, and what has their shape (Kimi K2): latent attention, the first layers dense, then experts chosen
in groups beside an MLP that all tokens go through."""

from __future__ import annotations

from dataclasses import replace

from pybatch.model.config import MAX_EXPERTS, MAX_LAYERS
from pybatch.model.errors import ModelError
from pybatch.model.families.experts import (
    SHARED_NAMES,
    SIGMOID_GGUF_KEYS,
    gguf_scoring,
    sigmoid_experts,
    softmax_experts,
    with_experts,
)
from pybatch.model.families.family import Family, GGUFFamily, Shape
from pybatch.model.families.latent import GGUF_KEYS as LATENT_KEYS
from pybatch.model.families.latent import latent_decoder
from pybatch.model.families.source import Source


def v2(source: Source) -> Shape:
    if gguf_scoring(source) == "sigmoid":  # files of both call themselves deepseek2
        return with_sigmoids(source)
    decoder = latent_decoder(source, context=2048, query_latent=1536)
    experts = softmax_experts(source, count=64, top_k=1, width=1407)
    method = source.choice("topk_method", ("greedy", "group_limited_greedy"), "greedy")
    groups, top_groups = (source.integer(key, 1, high=MAX_EXPERTS, nullable=True) for key in ("n_group", "topk_group"))
    source.choice("scoring_func", ("softmax",), "softmax")
    if experts.normalize:
        raise ModelError(f"{source.where}: norm_topk_prob: expected false beside routed_scaling_factor")
    limited = method == "group_limited_greedy"
    experts = replace(
        experts,
        groups=groups if limited else 1,
        top_groups=top_groups if limited else 1,
        scale=source.number("routed_scaling_factor", 1.0),
        shared_width=experts.width * source.integer("n_shared_experts", 2, low=0, high=MAX_EXPERTS),
    )
    return with_experts(decoder, experts, behind_first(source, len(decoder.layers), 0))


def v3(source: Source) -> Shape:
    source.choice("topk_method", ("noaux_tc",), "noaux_tc")
    source.choice("scoring_func", ("sigmoid",), "sigmoid")
    return with_sigmoids(source)


def with_sigmoids(source: Source) -> Shape:
    decoder = latent_decoder(source, context=4096, query_latent=1536)
    experts = sigmoid_experts(source, count=256, top_k=8, width=2048, groups=8, top_groups=4, normalize=True, scale=2.5)
    return with_experts(decoder, experts, behind_first(source, len(decoder.layers), 3))


def behind_first(source: Source, count: int, absent: int) -> list[bool]:
    """Which layers have experts: those behind the first few."""
    if source.integer("moe_layer_freq", 1, high=MAX_LAYERS) != 1:
        raise ModelError(f"{source.where}: moe_layer_freq: expected 1")
    first = source.integer("first_k_dense_replace", absent, low=0, high=MAX_LAYERS)
    return [layer >= first for layer in range(count)]


GGUF = GGUFFamily(
    architecture="deepseek2",
    keys={**SIGMOID_GGUF_KEYS, **LATENT_KEYS},
    constants={"topk_method": "group_limited_greedy", "q_lora_rank": None},
)
V2 = Family(
    model_type="deepseek_v2",
    architecture="DeepseekV2ForCausalLM",
    shape=v2,
    names=SHARED_NAMES,
    gguf=GGUF,
)
V3 = Family(model_type="deepseek_v3", architecture="DeepseekV3ForCausalLM", shape=v3, names=SHARED_NAMES, gguf=GGUF)
