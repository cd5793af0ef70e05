"""StableLM: LayerNorm, and a quarter of each head turns. In StableLM 2 of 12B each head has a norm of its own, and the
MLP reads what the attention reads."""

from __future__ import annotations

from dataclasses import replace

from pybatch.model.config import NormConfig
from pybatch.model.families.family import Family, GGUFFamily, Shape
from pybatch.model.families.llama import alike, with_biases
from pybatch.model.families.source import Source


def shape(source: Source) -> Shape:
    source.get("use_norm_bias")  # of StableLM 2's own code, whose LayerNorms have biases in any case
    norm = NormConfig(kind="layer", eps=source.norm_eps("layer_norm_eps", 1e-5), bias=True)
    decoder = alike(source, context=4096, kv_heads=32, partial=0.25, norm=norm)
    decoder = with_biases(decoder, qkv=source.flag("use_qkv_bias"), out=False, mlp=False)
    own_norms, parallel = source.flag("qk_layernorm"), source.flag("use_parallel_residual")
    layers = (layer.with_attention(qk_norm=own_norms, qk_norm_over="own") for layer in decoder.layers)
    return replace(decoder, layers=tuple(replace(layer, parallel=parallel, one_norm=parallel) for layer in layers))


FAMILY = Family(
    model_type="stablelm",
    architecture="StableLmForCausalLM",
    shape=shape,
    names={"q_norm": "self_attn.q_layernorm.norms.{}", "k_norm": "self_attn.k_layernorm.norms.{}"},
    gguf=GGUFFamily(architecture="stablelm", keys={"layer_norm_eps": "attention.layer_norm_epsilon"}),
)
