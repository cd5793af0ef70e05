"""MXFP4 as gpt-oss ships its experts: of a stack X of matrices [count, N, K], `X_blocks` uint8 [count, N, K / 32, 16],
two columns in a byte, the first in its lower half, and `X_scales` uint8 [count, N, K / 32], powers of two (E8M0).

https://www.opencompute.org/documents/ocp-microscaling-formats-mx-v1-0-spec-final-pdf
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pybatch.model.checkpoints.formats.floats import mxfp4
from pybatch.model.checkpoints.formats.matrices import Made
from pybatch.model.checkpoints.stored import StoredTensors
from pybatch.model.fields import Fields
from pybatch.model.rows import Rows

BLOCK = 32


@dataclass(frozen=True)
class Stack:
    """Matrices of one shape in one tensor; rows are those of all of them, one below the other."""

    rows: Rows
    count: int

    @property
    def shape(self) -> Sequence[int]:
        return self.count, self.rows.shape[0] // self.count, self.rows.shape[1]

    @property
    def dtype(self) -> torch.dtype:
        return self.rows.dtype

    def __getitem__(self, some: slice) -> Tensor:
        return self.rows[self._rows(some)].view(-1, *self.shape[1:])

    def release(self, some: slice) -> None:
        self.rows.release(self._rows(some))

    def flattened(self) -> Rows:
        return self.rows

    def _rows(self, some: slice) -> slice:
        return slice(some.start * self.shape[1], some.stop * self.shape[1])


class MXFP4:
    def __init__(self, config: Fields, tensors: StoredTensors) -> None:
        self.tensors = tensors

    def holds(self, module: str) -> bool:
        return f"{module}_blocks" in self.tensors

    def matrix(self, module: str) -> Rows:
        blocks = self.tensors.rows(f"{module}_blocks", ["U8"], (None, None, None, BLOCK // 2))
        count, n, groups = blocks.shape[:3]
        scales = self.tensors.whole(f"{module}_scales", ["U8"], (count, n, groups))
        return Stack(mxfp4(_below(blocks[:].flatten(2)), _below(scales)), count)


def _below(stack: Tensor) -> Rows:
    """[count, N, ...] as [count * N, ...]."""
    rows = stack.flatten(0, 1)
    return Made(None, rows.__getitem__, rows.shape, rows.dtype)
