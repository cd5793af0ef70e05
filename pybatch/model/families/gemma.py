"""Gemma 1: scaled embeddings, norms with weights around 0, and a GELU for the gate."""

from __future__ import annotations

from pybatch.model.config import AttentionConfig, LayerConfig, MLPConfig, NormConfig, Scales
from pybatch.model.families.family import Family, GGUFFamily, Shape
from pybatch.model.families.source import Source
from pybatch.model.rope import RopeConfig


def shape(source: Source) -> Shape:
    source.text("hidden_activation", None)  # which transformers does not read here
    if source.text("hidden_act", None) == "gelu":  # as the first configs had it, which meant the other form
        activation = "gelu_tanh"
    else:
        activation = source.activation(absent="gelu_pytorch_tanh")
    rope = source.rope(source.head_dim(256), source.context(8192))
    return alike(source, rope=rope, kv_heads=16, activation=activation, context=8192)


def alike(source: Source, *, rope: RopeConfig, kv_heads: int, activation: str, context: int) -> Shape:
    """Layers that are all alike, of heads of 256 elements. kv_heads, context: where the config says nothing."""
    bias = source.flag("attention_bias")
    attention = AttentionConfig(
        num_heads=source.num_heads(),
        num_kv_heads=source.num_kv_heads(kv_heads),
        head_dim=source.head_dim(256),
        rope=rope,
        bias=bias,
        out_bias=bias,
    )
    mlp = MLPConfig(width=source.mlp_width(), activation=activation)
    return Shape(
        layers=(LayerConfig(mixer=attention, mlp=mlp),) * source.num_layers(),
        norm=NormConfig(eps=source.norm_eps(), offset=1.0),
        context=source.context(context),
        tie_word_embeddings=source.flag("tie_word_embeddings", True),
        scales=Scales(embedding=source.hidden_size() ** 0.5),
    )


FAMILY = Family(model_type="gemma", architecture="GemmaForCausalLM", shape=shape, gguf=GGUFFamily(architecture="gemma"))
