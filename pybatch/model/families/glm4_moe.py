"""GLM 4.5 and 4.6: the first layers dense; then experts chosen by their sigmoids plus a correction (as in DeepSeek-V3),
beside an MLP that all tokens go through."""

from __future__ import annotations

from pybatch.model.config import MAX_LAYERS
from pybatch.model.errors import ModelError
from pybatch.model.families.experts import SHARED_NAMES, SIGMOID_GGUF_KEYS, gguf_scoring, sigmoid_experts, with_experts
from pybatch.model.families.family import Family, GGUFFamily, Shape
from pybatch.model.families.llama import alike, with_biases
from pybatch.model.families.source import Source


def shape(source: Source) -> Shape:
    decoder = alike(source, context=131072, kv_heads=8, partial=0.5, eps=1e-5, qk_norm=source.flag("use_qk_norm"))
    decoder = with_biases(decoder, qkv=source.flag("attention_bias"), out=False, mlp=False)
    if gguf_scoring(source) == "softmax":
        raise ModelError(f"{source.where}: expert_gating_func: expected 2, sigmoids")
    experts = sigmoid_experts(source, count=128, top_k=8, width=1408)
    first = source.integer("first_k_dense_replace", 1, low=0, high=MAX_LAYERS)
    return with_experts(decoder, experts, [layer >= first for layer in range(len(decoder.layers))])


FAMILY = Family(
    model_type="glm4_moe",
    architecture="Glm4MoeForCausalLM",
    shape=shape,
    names=SHARED_NAMES,
    gguf=GGUFFamily(architecture="glm4moe", keys=SIGMOID_GGUF_KEYS),
)
