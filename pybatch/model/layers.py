"""Linear projections over weights packed for the kernels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, TypedDict, Unpack

from torch import Tensor

from pybatch import ops
from pybatch.model.buffers import Buffers
from pybatch.ops import Epilogue, Experts


class Fused(TypedDict, total=False):
    """What the kernels do before and after multiplying; see ops.matmul_dense."""

    norm: Tensor | None
    norm_eps: float
    epilogue: Epilogue
    experts: Experts | None


class Linear(Protocol):
    """out = x @ weight^T + bias. Of experts, weights are stacks, with the expert as their first dimension."""

    def __call__(self, x: Tensor, out: Tensor, **fused: Unpack[Fused]) -> Tensor: ...


@dataclass(frozen=True, slots=True)
class DenseLinear:
    weight: Tensor  # packed by ops.pack_dense
    width: int  # N
    bias: Tensor | None = None

    def __call__(self, x: Tensor, out: Tensor, **fused: Unpack[Fused]) -> Tensor:
        return ops.matmul_dense(x, self.weight, self.bias, out=out, **fused)

    def embed(self, ids: Tensor, out: Tensor, multiplier: float = 1.0) -> Tensor:
        return ops.embedding(ids, self.weight, out, self.width, multiplier=multiplier)


@dataclass(frozen=True, slots=True)
class ScaledLinear:
    matmul: Callable[..., Tensor]  # ops.matmul_w8a8 or ops.matmul_w8a16
    weight: Tensor  # packed by ops.pack_int8 or, for the latter, ops.pack_float8
    scale: Tensor  # [N] float32
    bias: Tensor | None = None

    @property
    def width(self) -> int:
        return self.scale.shape[0]

    def __call__(self, x: Tensor, out: Tensor, **fused: Unpack[Fused]) -> Tensor:
        return self.matmul(x, self.weight, self.scale, self.bias, out=out, **fused)

    def embed(self, ids: Tensor, out: Tensor, multiplier: float = 1.0) -> Tensor:
        return ops.embedding(ids, self.weight, out, self.width, self.scale, multiplier)


@dataclass(frozen=True, slots=True)
class GGUFLinear:
    weight: Tensor  # packed by ops.pack_gguf
    width: int  # N
    bias: Tensor | None = None

    def __call__(self, x: Tensor, out: Tensor, **fused: Unpack[Fused]) -> Tensor:
        return ops.matmul_gguf(x, self.weight, self.bias, out=out, **fused)

    def embed(self, ids: Tensor, out: Tensor, multiplier: float = 1.0) -> Tensor:
        return ops.embedding(ids, self.weight, out, self.width, multiplier=multiplier)


ACTIVATIONS = {Epilogue.SILU_MUL: ops.silu_mul, Epilogue.GELU_TANH_MUL: ops.gelu_tanh_mul}

Packed = DenseLinear | ScaledLinear | GGUFLinear  # each also serves as an embedding


@dataclass(frozen=True, slots=True)
class OfHeads:
    """A projection of its own for each head: x [T, heads, K] to out [T, heads, N]."""

    linears: Sequence[Packed]

    def __call__(self, x: Tensor, out: Tensor) -> None:
        for linear, of_x, of_out in zip(self.linears, x.unbind(1), out.unbind(1), strict=True):
            linear(of_x, of_out)


def as_stack(linear: Packed, count: int, width: int) -> Packed:
    """The projections of `count` experts, of so many rows each, packed one below the other from whole panels on."""
    weight = linear.weight.view(count, -1, *linear.weight.shape[1:])
    if isinstance(linear, ScaledLinear):
        return replace(linear, weight=weight, scale=linear.scale.view(count, -1)[:, :width].contiguous())
    return replace(linear, weight=weight, width=width)


@dataclass(frozen=True, slots=True)
class SideBySide:
    """Projections of the same normalised input whose outputs lie side by side: parts that no one packed matrix can
    hold, such as gate and up."""

    parts: Sequence[Packed]

    @property
    def widths(self) -> list[int]:
        return [part.width for part in self.parts]

    def __call__(self, x: Tensor, out: Tensor, **fused: Unpack[Fused]) -> Tensor:
        activation = ACTIVATIONS.get(fused.pop("epilogue", ops.STORE))
        product = out if activation is None else x.new_empty(x.shape[0], sum(self.widths))
        for part, columns in zip(self.parts, product.split_with_sizes(self.widths, dim=1), strict=True):
            part(x, columns, **fused)
        return out if activation is None else activation(product, out)


@dataclass(frozen=True, slots=True)
class Norm:
    """RMSNorm, or with layer_norm LayerNorm (which alone may have a bias)."""

    weight: Tensor
    eps: float
    layer_norm: bool = False
    bias: Tensor | None = None

    def __call__(self, x: Tensor, out: Tensor | None = None) -> Tensor:
        if self.layer_norm:
            return ops.layer_norm(x, self.weight, self.bias, self.eps, out=out)
        return ops.rms_norm(x, self.weight, self.eps, out=out)

    def divided(self, scale: Tensor) -> Norm:
        """One whose output's channels are divided by scale."""
        bias = None if self.bias is None else (self.bias / scale).to(self.bias.dtype)
        return replace(self, weight=(self.weight / scale).to(self.weight.dtype), bias=bias)


@dataclass(frozen=True, slots=True)
class NormOfAllHeads:
    """An RMSNorm over the queries of all heads together and one over their keys, in place."""

    q: Tensor  # [heads * head_dim]
    k: Tensor  # [kv_heads * head_dim]
    eps: float

    def __call__(self, q: Tensor, k: Tensor) -> None:
        ops.rms_norm(q, self.q, self.eps, out=q)
        ops.rms_norm(k, self.k, self.eps, out=k)


@dataclass(frozen=True, slots=True)
class NormedLinear:
    """A projection of the residual stream behind a norm; None: of the stream as it is."""

    norm: Norm | None
    linear: Linear

    def __call__(
        self,
        x: Tensor,
        out: Tensor,
        buffers: Buffers,
        epilogue: Epilogue = ops.STORE,
        experts: Experts | None = None,
    ) -> Tensor:
        if self.norm is None:
            return self.linear(x, out, epilogue=epilogue, experts=experts)
        if self.norm.layer_norm:
            normed = self.norm(x, buffers.of("normed", x.shape[1]))
            return self.linear(normed, out, epilogue=epilogue, experts=experts)
        return self.linear(x, out, norm=self.norm.weight, norm_eps=self.norm.eps, epilogue=epilogue, experts=experts)


@dataclass(frozen=True, slots=True)
class ResidualLinear:
    """A projection that is added to the residual stream: its product through a norm, if any, times factor; the sum is
    multiplied by scale."""

    linear: Linear
    norm: Norm | None = None
    factor: float = 1.0
    scale: float = 1.0

    def __call__(self, x: Tensor, residual: Tensor, buffers: Buffers) -> None:
        if self.norm is None and self.factor == self.scale == 1.0:
            self.linear(x, residual, epilogue=Epilogue.ADD)
            return
        self.add(self.linear(x, buffers.of("normed", residual.shape[1])), residual)

    def add(self, product: Tensor, residual: Tensor) -> None:
        weight, eps = (None, 0.0) if self.norm is None else (self.norm.weight, self.norm.eps)
        ops.add_normed(product, residual, weight, eps, self.factor, self.scale)
