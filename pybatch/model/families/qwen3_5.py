"""Qwen 3.5 and 3.6, dense: of four layers three have a gated delta net, and one attention whose output has a gate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pybatch.model.config import (
    MAX_HEADS,
    MAX_LAYERS,
    MAX_WIDTH,
    AttentionConfig,
    GatedDeltaConfig,
    LayerConfig,
    MLPConfig,
    MoEConfig,
    NormConfig,
)
from pybatch.model.errors import ModelError
from pybatch.model.families.family import Family, GGUFFamily, Shape
from pybatch.model.families.source import Source

LINEAR, FULL = LAYER_TYPES = ("linear_attention", "full_attention")
NAMES: Mapping[str, str] = {
    "q_and_gate": "self_attn.q_proj",
    "delta_conv": "linear_attn.conv1d",
    "delta_rate": "linear_attn.A_log",
    "delta_bias": "linear_attn.dt_bias",
    "delta_norm": "linear_attn.norm",
    "delta_out": "linear_attn.out_proj",
}
DELTA_KEYS: Mapping[str, str] = {
    "linear_conv_kernel_dim": "ssm.conv_kernel",
    "linear_key_head_dim": "ssm.state_size",
    "linear_num_key_heads": "ssm.group_count",
    "linear_num_value_heads": "ssm.time_step_rank",
    "full_attention_interval": "full_attention_interval",
}


def shape(source: Source) -> Shape:
    return hybrid(source, (mlp(source),) * source.num_layers(), kv_heads=4)


def mlp(source: Source) -> MLPConfig:
    return MLPConfig(width=source.mlp_width(), activation=source.activation())


def hybrid(source: Source, mlps: Sequence[MLPConfig | MoEConfig], *, kv_heads: int) -> Shape:
    """kv_heads: where the config says nothing."""
    if source.activation() != "silu":
        raise ModelError(f"{source.where}: hidden_act: expected silu, which the convolutions have too")
    source.expect(attn_output_gate=True, mamba_ssm_dtype="float32")
    head_dim, length = source.head_dim(256), source.context(32768)
    bias = source.flag("attention_bias")
    attention = AttentionConfig(
        num_heads=source.num_heads(),
        num_kv_heads=source.num_kv_heads(kv_heads),
        head_dim=head_dim,
        rope=source.rope(head_dim, length, partial=0.25, sections=True),
        bias=bias,
        out_bias=bias,
        qk_norm=True,
        gated=True,
    )
    delta = GatedDeltaConfig(
        key_heads=source.integer("linear_num_key_heads", 16, high=MAX_HEADS),
        value_heads=source.integer("linear_num_value_heads", 32, high=MAX_HEADS),
        key_dim=source.integer("linear_key_head_dim", 128, high=MAX_WIDTH),
        value_dim=source.integer("linear_value_head_dim", 128, high=MAX_WIDTH),
        taps=source.integer("linear_conv_kernel_dim", 4, high=MAX_WIDTH),
    )
    every = source.integer("full_attention_interval", 4, high=MAX_LAYERS)
    kinds = source.layer_types(len(mlps), 0, LAYER_TYPES)
    if kinds is None:
        kinds = [FULL if (layer + 1) % every == 0 else LINEAR for layer in range(len(mlps))]
    return Shape(
        layers=tuple(
            LayerConfig(mixer=attention if kind == FULL else delta, mlp=mlp)
            for kind, mlp in zip(kinds, mlps, strict=True)
        ),
        norm=NormConfig(eps=source.norm_eps(), offset=1.0),
        context=length,
        tie_word_embeddings=source.flag("tie_word_embeddings"),
    )


SINGLE_NAMES: Mapping[str, str] = {
    **NAMES,
    "delta_qkv": "linear_attn.in_proj_qkv",
    "delta_gate": "linear_attn.in_proj_z",
    "delta_b": "linear_attn.in_proj_b",
    "delta_a": "linear_attn.in_proj_a",
}
FAMILY = Family(
    model_type="qwen3_5_text",
    architecture="Qwen3_5ForCausalLM",
    shape=shape,
    names=SINGLE_NAMES,
    gguf=GGUFFamily(architecture="qwen35", keys=DELTA_KEYS, tiled_value_heads=True),
)
