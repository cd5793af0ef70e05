"""Linear projections over weights packed for the kernels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypedDict, Unpack

from torch import Tensor

from pybatch import ops
from pybatch.ops import Epilogue


class Fused(TypedDict, total=False):
    """What the kernels do before and after multiplying; see ops.matmul_dense."""

    norm: Tensor | None
    norm_eps: float
    epilogue: Epilogue


class Linear(Protocol):
    """out = x @ weight^T + bias."""

    def __call__(self, x: Tensor, out: Tensor, **fused: Unpack[Fused]) -> Tensor: ...

    def nbytes(self) -> int: ...


@dataclass(frozen=True, slots=True)
class DenseLinear:
    weight: Tensor  # packed by ops.pack_dense
    width: int  # N
    bias: Tensor | None = None

    def __call__(self, x: Tensor, out: Tensor, **fused: Unpack[Fused]) -> Tensor:
        return ops.matmul_dense(x, self.weight, self.bias, out=out, **fused)

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

    def __call__(self, x: Tensor, out: Tensor, **fused: Unpack[Fused]) -> Tensor:
        return self.matmul(x, self.weight, self.scale, self.bias, out=out, **fused)

    def embed(self, ids: Tensor, out: Tensor) -> Tensor:
        return ops.embedding(ids, self.weight, out, self.scale.shape[0], self.scale)

    def nbytes(self) -> int:
        return self.weight.nbytes + self.scale.nbytes + (0 if self.bias is None else self.bias.nbytes)


@dataclass(frozen=True, slots=True)
class GGUFLinear:
    weight: Tensor  # packed by ops.pack_gguf
    width: int  # N
    bias: Tensor | None = None

    def __call__(self, x: Tensor, out: Tensor, **fused: Unpack[Fused]) -> Tensor:
        return ops.matmul_gguf(x, self.weight, self.bias, out=out, **fused)

    def embed(self, ids: Tensor, out: Tensor) -> Tensor:
        return ops.embedding(ids, self.weight, out, self.width)

    def nbytes(self) -> int:
        return self.weight.nbytes + (0 if self.bias is None else self.bias.nbytes)


ACTIVATIONS = {Epilogue.SILU_MUL: ops.silu_mul, Epilogue.GELU_TANH_MUL: ops.gelu_tanh_mul}

Packed = DenseLinear | Int8Linear | GGUFLinear  # each also serves as an embedding


class SideBySide:
    """Projections of the same normalised input whose outputs lie side by side: parts that no one packed matrix can
    hold, such as gate and up."""

    def __init__(self, parts: Sequence[DenseLinear | GGUFLinear]) -> None:
        self.parts = parts
        self.widths = [part.width for part in parts]

    def __call__(self, x: Tensor, out: Tensor, **fused: Unpack[Fused]) -> Tensor:
        activation = ACTIVATIONS.get(fused.pop("epilogue", ops.STORE))
        product = out if activation is None else x.new_empty(x.shape[0], sum(self.widths))
        for part, columns in zip(self.parts, product.split_with_sizes(self.widths, dim=1), strict=True):
            part(x, columns, **fused)
        return out if activation is None else activation(product, out)

    def nbytes(self) -> int:
        return sum(part.nbytes() for part in self.parts)
