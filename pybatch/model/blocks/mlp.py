"""The MLP, gated (SwiGLU and its kin, Shazeer 2020) or not."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from pybatch import ops
from pybatch.model.blocks.step import Step
from pybatch.model.buffers import Widths
from pybatch.model.config import MLPConfig
from pybatch.model.layers import NormedLinear, ResidualLinear
from pybatch.ops import Epilogue

PLAIN = {"gelu": ops.gelu, "gelu_tanh": ops.gelu_tanh, "relu2": ops.relu2}
EPILOGUES = {"silu": Epilogue.SILU_MUL, "gelu_tanh": Epilogue.GELU_TANH_MUL}


@dataclass(frozen=True, slots=True)
class Xielu:
    """ops.xielu with the numbers that a layer has learned."""

    alpha_p: float
    alpha_n: float
    beta: float
    eps: float

    def __call__(self, x: Tensor, out: Tensor) -> Tensor:
        return ops.xielu(x, out, alpha_p=self.alpha_p, alpha_n=self.alpha_n, beta=self.beta, eps=self.eps)


@dataclass(frozen=True, slots=True, kw_only=True)
class MLP:
    config: MLPConfig
    gate_up: NormedLinear  # rows as ops.interleave_gate_up puts them; those of up where there is no gate
    down: ResidualLinear
    xielu: Xielu | None = None

    @property
    def widths(self) -> Widths:
        return {"gated": self.config.width}

    def __call__(self, residual: Tensor, step: Step) -> Tensor:
        """[T, width]"""
        gated = step.buffers.of("gated", self.config.width)
        if self.config.gated:
            return self.gate_up(residual, gated, step.buffers, EPILOGUES[self.config.activation])
        self.gate_up(residual, gated, step.buffers)
        activation = PLAIN[self.config.activation] if self.xielu is None else self.xielu
        return activation(gated, gated)

    def add(self, gated: Tensor, residual: Tensor, step: Step) -> None:
        self.down(gated, residual, step.buffers)
