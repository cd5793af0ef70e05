"""An MLP and a mixture of experts that read the same, and whose sum is added (Gemma 4)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from pybatch import ops
from pybatch.model.blocks.mlp import MLP
from pybatch.model.blocks.moe import MoE, Routed
from pybatch.model.blocks.step import Step
from pybatch.model.buffers import Widths
from pybatch.model.layers import Norm


@dataclass(frozen=True, slots=True, kw_only=True)
class MLPBesideMoE:
    mlp: MLP  # whose norm and scale behind are those of the sum
    moe: MoE
    mlp_norm: Norm
    moe_norm: Norm

    @property
    def widths(self) -> Widths:
        return {**self.mlp.widths, **self.moe.widths, "sum": self.mlp_norm.weight.shape[0]}

    def __call__(self, residual: Tensor, step: Step) -> tuple[Tensor, Routed]:
        return self.mlp(residual, step), self.moe(residual, step)

    def add(self, inner: tuple[Tensor, Routed], residual: Tensor, step: Step) -> None:
        (gated, routed), hidden = inner, residual.shape[1]
        product, total = step.buffers.of("normed", hidden), step.buffers.of("sum", hidden)
        self.mlp_norm(self.mlp.down.linear(gated, product), total)
        self.moe.down(routed.gated, product, experts=routed.experts)
        ops.add_normed(product, total, self.moe_norm.weight, self.moe_norm.eps)
        self.mlp.down.add(total, residual)
