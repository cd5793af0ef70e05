"""Llama 1 to 3, and all that are saved as Llama: SmolLM2, TinyLlama, Falcon 3, DeepSeek's distillations, ..."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from pybatch.model.config import AttentionConfig, LayerConfig, MLPConfig, NormConfig
from pybatch.model.families.family import Family, GGUFFamily, Shape
from pybatch.model.families.source import Source
from pybatch.model.rope import NO_ROPE, RopeConfig


def shape(source: Source) -> Shape:
    decoder = alike(source, context=2048)
    source.window()  # which transformers does not read here
    source.expect_layer_types([0] * len(decoder.layers))
    return decoder


def alike(
    source: Source,
    *,
    context: int,
    kv_heads: int | None = None,
    head_dim: int | None = None,
    theta: float = 10000.0,
    partial: float | None = None,
    eps: float = 1e-6,
    tied: bool = False,
    qk_norm: bool = False,
    activation: str = "silu",
    gated: bool = True,
    norm: NormConfig | None = None,
    rope: RopeConfig | None = None,
    mlp_width: int | None = None,
) -> Shape:
    """Layers that are all alike. context, kv_heads, head_dim, theta, eps, tied, activation, mlp_width: where the config
    says nothing. partial: as in Source.rope. norm: in place of an RMSNorm with the config's rms_norm_eps.
    rope: in place of the one that the config has for all layers."""
    bias = source.flag("attention_bias")
    width = source.head_dim(head_dim)
    length = source.context(context)
    attention = AttentionConfig(
        num_heads=source.num_heads(),
        num_kv_heads=source.num_kv_heads(kv_heads),
        head_dim=width,
        rope=rope or source.rope(width, length, theta=theta, partial=partial),
        bias=bias,
        out_bias=bias,
        qk_norm=qk_norm,
    )
    mlp = MLPConfig(
        width=source.mlp_width(mlp_width),
        activation=source.activation(absent=activation, gated=gated),
        gated=gated,
        bias=source.flag("mlp_bias"),
    )
    return Shape(
        layers=(LayerConfig(mixer=attention, mlp=mlp),) * source.num_layers(),
        norm=norm or NormConfig(eps=source.norm_eps(absent=eps)),
        context=length,
        tie_word_embeddings=source.flag("tie_word_embeddings", tied),
    )


def with_biases(decoder: Shape, *, qkv: bool, out: bool, mlp: bool) -> Shape:
    """Whether these projections have biases."""

    def biased(layer: LayerConfig) -> LayerConfig:
        assert isinstance(layer.mlp, MLPConfig)
        return replace(layer.with_attention(bias=qkv, out_bias=out), mlp=replace(layer.mlp, bias=mlp))

    return replace(decoder, layers=tuple(map(biased, decoder.layers)))


def without_rope(decoder: Shape, layers: Sequence[bool]) -> Shape:
    """layers: which of them turn nothing."""
    each = zip(decoder.layers, layers, strict=True)
    return replace(
        decoder,
        layers=tuple(layer.with_attention(rope=NO_ROPE) if none else layer for layer, none in each),
    )


def with_windows(decoder: Shape, windows: Sequence[int]) -> Shape:
    """windows: one a layer, 0: none."""
    layers = zip(decoder.layers, windows, strict=True)
    return replace(decoder, layers=tuple(layer.with_attention(window=window) for layer, window in layers))


FAMILY = Family(
    model_type="llama",
    architecture="LlamaForCausalLM",
    shape=shape,
    gguf=GGUFFamily(architecture="llama", adjacent_pairs=True),
)
