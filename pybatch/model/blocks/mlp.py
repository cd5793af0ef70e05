"""The gated MLP (SwiGLU and its kin, Shazeer 2020)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from pybatch.model.blocks.step import Step
from pybatch.model.buffers import Widths
from pybatch.model.config import MLPConfig
from pybatch.model.layers import Linear, NormedLinear
from pybatch.ops import Epilogue

EPILOGUES = {"silu": Epilogue.SILU_MUL, "gelu_tanh": Epilogue.GELU_TANH_MUL}


@dataclass(frozen=True, slots=True, kw_only=True)
class MLP:
    config: MLPConfig
    gate_up: NormedLinear  # rows as ops.interleave_gate_up puts them
    down: Linear

    @property
    def widths(self) -> Widths:
        return {"gated": self.config.width}

    def __call__(self, residual: Tensor, step: Step) -> Tensor:
        """[T, width]"""
        gated = step.buffers.of("gated", self.config.width)
        return self.gate_up(residual, gated, step.buffers, EPILOGUES[self.config.activation])

    def add(self, gated: Tensor, residual: Tensor) -> None:
        self.down(gated, residual, epilogue=Epilogue.ADD)
