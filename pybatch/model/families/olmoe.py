"""OLMoE: norms over all of q, and of k, and experts in every layer."""

from __future__ import annotations

from dataclasses import replace

from pybatch.model.families.experts import GGUF_KEYS, softmax_experts, with_experts
from pybatch.model.families.family import Family, GGUFFamily, Shape
from pybatch.model.families.llama import alike
from pybatch.model.families.source import Source


def shape(source: Source) -> Shape:
    decoder = alike(source, context=4096, eps=1e-5, qk_norm=True)
    source.expect(clip_qkv=None)
    layers = tuple(layer.with_attention(qk_norm_over="all") for layer in decoder.layers)
    experts = replace(softmax_experts(source, count=64, top_k=8, width=0), width=source.mlp_width())
    return with_experts(replace(decoder, layers=layers), experts, [True] * len(layers))


FAMILY = Family(
    model_type="olmoe",
    architecture="OlmoeForCausalLM",
    shape=shape,
    gguf=GGUFFamily(architecture="olmoe", keys=GGUF_KEYS),
)
