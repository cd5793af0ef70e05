"""Linear projections over weights packed for the kernels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from pybatch import ops


class Linear(Protocol):
    """out = x @ weight^T + bias."""

    def __call__(self, x: Tensor, out: Tensor) -> Tensor: ...

    def nbytes(self) -> int: ...


@dataclass(frozen=True, slots=True)
class DenseLinear:
    weight: Tensor  # packed by ops.pack_dense
    width: int  # N
    bias: Tensor | None = None

    def __call__(self, x: Tensor, out: Tensor) -> Tensor:
        return ops.matmul_dense(x, self.weight, self.bias, out=out)

    def embed(self, ids: Tensor, out: Tensor) -> Tensor:
        return ops.embedding(ids, self.weight, out, self.width)

    def nbytes(self) -> int:
        return self.weight.nbytes + (0 if self.bias is None else self.bias.nbytes)


@dataclass(frozen=True, slots=True)
class Int8Linear:
    matmul: Callable[..., Tensor]  # ops.matmul_w8a8 or ops.matmul_w8a16
    weight: Tensor  # packed by ops.pack_int8
    scale: Tensor  # [N] float32
    bias: Tensor | None = None

    def __call__(self, x: Tensor, out: Tensor) -> Tensor:
        return self.matmul(x, self.weight, self.scale, self.bias, out=out)

    def embed(self, ids: Tensor, out: Tensor) -> Tensor:
        return ops.embedding(ids, self.weight, out, self.scale.shape[0], self.scale)

    def nbytes(self) -> int:
        return self.weight.nbytes + self.scale.nbytes + (0 if self.bias is None else self.bias.nbytes)


Packed = DenseLinear | Int8Linear  # either also serves as an embedding
