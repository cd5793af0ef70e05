"""Linear attention by the gated delta rule (Gated DeltaNet, Yang, Kautz and Hatamizadeh 2024)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from pybatch import ops
from pybatch.model.batch import LayerState
from pybatch.model.blocks.step import Step
from pybatch.model.buffers import Widths
from pybatch.model.config import GatedDeltaConfig
from pybatch.model.layers import NormedLinear, ResidualLinear


@dataclass(frozen=True, slots=True, kw_only=True)
class GatedDeltaNet:
    config: GatedDeltaConfig
    projection: NormedLinear  # queries, keys and values; the gate of the output; b and a, one for each value head
    conv: Tensor  # [taps, channels]
    rate: Tensor  # [value_heads] float32
    dt_bias: Tensor  # [value_heads] float32
    norm: Tensor  # [value_dim]
    norm_eps: float
    out: ResidualLinear

    @property
    def widths(self) -> Widths:
        config = self.config
        return {"projected": sum(self._split), "convolved": config.channels, "attended": config.value_width}

    @property
    def _split(self) -> tuple[int, int, int, int]:
        config = self.config
        return config.channels, config.value_width, config.value_heads, config.value_heads

    def __call__(self, residual: Tensor, step: Step, state: LayerState) -> Tensor:
        """[T, value_heads * value_dim]"""
        config, batch, split = self.config, step.batch, self._split
        assert batch.state_source is not None
        assert batch.state_destination is not None
        sequences = batch.query_start, batch.state_source, batch.state_destination
        projected = self.projection(residual, step.buffers.of("projected", sum(split)), step.buffers)
        qkv, gate, b, a = projected.split_with_sizes(split, dim=1)
        convolved = step.buffers.of("convolved", config.channels)
        ops.causal_conv(qkv, self.conv, state.conv, *sequences, out=convolved)
        out = step.buffers.of("attended", config.value_width)
        ops.gated_delta_rule(convolved, a, b, self.rate, self.dt_bias, state.recurrent, *sequences, out)
        return ops.gated_rms_norm(out, gate, self.norm, self.norm_eps, out=out)

    def add(self, attended: Tensor, residual: Tensor, step: Step) -> None:
        self.out(attended, residual, step.buffers)
