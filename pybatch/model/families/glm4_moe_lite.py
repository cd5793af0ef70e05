"""GLM 4.7 Flash: DeepSeek-V3's attention and experts in GLM 4.5's layers."""

from __future__ import annotations

from pybatch.model.families.deepseek import GGUF, behind_first
from pybatch.model.families.experts import SHARED_NAMES, dense_or_sparse, sigmoid_experts, with_experts
from pybatch.model.families.family import Family, Shape
from pybatch.model.families.latent import latent_decoder
from pybatch.model.families.source import Source


def shape(source: Source) -> Shape:
    decoder = latent_decoder(source, context=202752, query_latent=768, key_dim=192, value_dim=256, eps=1e-5)
    experts = sigmoid_experts(source, count=64, top_k=4, width=1536, normalize=True, scale=1.8)
    source.choice("topk_method", ("noaux_tc",), "noaux_tc")
    count = len(decoder.layers)
    return with_experts(decoder, experts, dense_or_sparse(source, count) or behind_first(source, count, 1))


FAMILY = Family(
    model_type="glm4_moe_lite",
    architecture="Glm4MoeLiteForCausalLM",
    shape=shape,
    names=SHARED_NAMES,
    gguf=GGUF,
)
