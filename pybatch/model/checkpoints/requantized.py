"""Matrices in blocks that no kernel takes: they become blocks of eight bits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from gguf import GGMLQuantizationType, quants
from gguf.constants import GGML_QUANT_SIZES
from torch import Tensor

from pybatch.model.rows import Rows

BECOMES = GGMLQuantizationType.Q8_0  # a scale for 32 weights: little is lost to what had fewer bits


@dataclass(frozen=True, slots=True)
class RequantizedRows:
    """The matrix, whose rows are dequantised to float32, or become blocks, when they are asked for."""

    stored: Rows  # [N, bytes of a row] uint8
    kind: GGMLQuantizationType
    shape: Sequence[int]
    dtype: torch.dtype = torch.float32
    block_type: str = BECOMES.name

    @property
    def blocks(self) -> Rows:
        return _Blocks(self)

    def __getitem__(self, rows: slice) -> Tensor:
        return torch.from_numpy(quants.dequantize(self.stored[rows].numpy(), self.kind))

    def release(self, rows: slice) -> None:
        self.stored.release(rows)


@dataclass(frozen=True, slots=True)
class _Blocks:
    rows: RequantizedRows
    dtype: torch.dtype = torch.uint8

    @property
    def shape(self) -> Sequence[int]:
        weights, size = GGML_QUANT_SIZES[BECOMES]
        return (*self.rows.shape[:-1], self.rows.shape[-1] // weights * size)

    def __getitem__(self, rows: slice) -> Tensor:
        return torch.from_numpy(quants.quantize(self.rows[rows].numpy(), BECOMES))

    def release(self, rows: slice) -> None:
        self.rows.release(rows)
