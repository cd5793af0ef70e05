"""Inputs of each layer that a token itself has (Gemma's per-layer embeddings): from an embedding of their own, and by a
projection of what the first layer reads."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from pybatch import ops
from pybatch.model.blocks.step import Step
from pybatch.model.buffers import Buffers, Widths
from pybatch.model.layers import Linear, Packed, ResidualLinear


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenInputs:
    """Of all layers: (embedding * width ** 0.5 + norm(projection)) / 2 ** 0.5."""

    embedding: Packed
    projection: Linear
    norm: Tensor  # [width]
    eps: float  # of what is projected, before it is multiplied by hidden_size ** -0.5
    layers: int

    @property
    def widths(self) -> Widths:
        return {"token.inputs": self._width, "token.projected": self._width}

    @property
    def _width(self) -> int:
        return self.layers * self.norm.shape[0]

    def __call__(self, token_ids: Tensor, residual: Tensor, buffers: Buffers) -> None:
        width, half = self.norm.shape[0], 0.5**0.5
        inputs, projected = (buffers.of(name, self._width) for name in ("token.inputs", "token.projected"))
        self.embedding.embed(token_ids, inputs, width**0.5 * half)
        self.projection(residual, projected)
        ops.add_normed(projected.view(-1, width), inputs.view(-1, width), self.norm, self.eps, half)


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenInput:
    """Of a layer: adds out(gelu_tanh(gate(x)) * input)."""

    gate: Linear
    out: ResidualLinear
    index: int  # of the layer
    width: int
    layers: int

    @property
    def widths(self) -> Widths:
        return {"token.gate": self.width}

    def __call__(self, residual: Tensor, step: Step) -> None:
        inputs = step.buffers.of("token.inputs", self.layers * self.width)
        own = inputs[:, self.index * self.width : (self.index + 1) * self.width]
        gate = self.gate(residual, step.buffers.of("token.gate", self.width))
        self.out(ops.gelu_tanh_gate(own, gate, out=gate), residual, step.buffers)
