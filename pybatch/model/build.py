"""From the config of a layer to its blocks, with their weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from torch import Tensor

from pybatch.model.blocks.attention import Attention
from pybatch.model.blocks.mlp import MLP
from pybatch.model.config import AttentionConfig, LayerConfig, MLPConfig, ModelConfig
from pybatch.model.decoder import Layer
from pybatch.model.layers import Norm, NormedLinear, Packed
from pybatch.model.rope import NO_ROPE


class Weights(Protocol):
    """Where blocks get their weights from, by role: see weights.WeightLoader."""

    @property
    def config(self) -> ModelConfig: ...

    def norm(self, role: str, width: int, layer: int | None = None) -> Norm | None: ...

    def vector(
        self, role: str, length: int, layer: int | None = None, suffix: str = ".weight", *, turning: int = 0
    ) -> Tensor: ...

    def linear(
        self, rows: Mapping[str, int], columns: int, layer: int | None = None, *, bias: bool = False, fused: str = ""
    ) -> Packed: ...

    def behind_norm(
        self,
        norm: str,
        rows: Mapping[str, int],
        columns: int,
        layer: int,
        *,
        bias: bool = False,
        fused: str = "",
        gated: bool = False,
        heads: Mapping[str, tuple[int, int]] | None = None,
    ) -> NormedLinear: ...


def build_layer(load: Weights, config: LayerConfig, index: int) -> Layer:
    return Layer(mixer=attention(load, config.mixer, index), mlp=mlp(load, config.mlp, index), parallel=config.parallel)


def attention(load: Weights, config: AttentionConfig, index: int) -> Attention:
    hidden = load.config.hidden_size
    turning = config.head_dim if config.rope == NO_ROPE else config.rope.rotary_dim  # files have all layers alike
    return Attention(
        config=config,
        index=index,
        qkv=load.behind_norm(
            "mixer_norm",
            {"q": config.q_width, "k": config.kv_width, "v": config.kv_width},
            hidden,
            index,
            bias=config.bias,
            fused="qkv",
            heads={"q": (config.num_heads, turning), "k": (config.num_kv_heads, turning)},
        ),
        q_norm=load.vector("q_norm", config.head_dim, index, turning=turning) if config.qk_norm else None,
        k_norm=load.vector("k_norm", config.head_dim, index, turning=turning) if config.qk_norm else None,
        norm_eps=load.config.norm.eps,
        sinks=load.vector("sinks", config.num_heads, index, "").float() if config.sinks else None,
        out=load.linear({"attention_out": hidden}, config.q_width, index, bias=config.out_bias),
    )


def mlp(load: Weights, config: MLPConfig, index: int) -> MLP:
    hidden, width = load.config.hidden_size, config.width
    return MLP(
        config=config,
        gate_up=load.behind_norm(
            "mlp_norm", {"gate": width, "up": width}, hidden, index, bias=config.bias, fused="gate_up", gated=True
        ),
        down=load.linear({"down": hidden}, width, index, bias=config.bias),
    )
