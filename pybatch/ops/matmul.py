"""Matmuls by packed weights, each with what comes before and after it."""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple

from torch import Tensor

from pybatch.ops.library import kernels


class Epilogue(IntEnum):
    """What a matmul does with its product, rounded to out's dtype first."""

    STORE = 0  # out = product
    ADD = 1  # out += product
    SILU_MUL = 2  # out = silu(gate) * up, the product of weights that interleave_gate_up has interleaved
    GELU_TANH_MUL = 3  # likewise with the tanh form of GELU


STORE = Epilogue.STORE


class Experts(NamedTuple):
    """Which rows of a matmul's product each expert's weights multiply, and what becomes of them; see Routing."""

    starts: Tensor  # [E + 1] int32, ascending from 0: rows starts[e] to starts[e + 1] are expert e's
    tokens: Tensor | None = None  # [rows] int32: the row of x of each; None: its own
    places: Tensor | None = None  # [T, k] int32: the rows that are summed, times weights, to each row of out
    weights: Tensor | None = None  # [T, k] float32


def matmul_dense(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    out: Tensor,
    norm: Tensor | None = None,
    norm_eps: float = 0.0,
    epilogue: Epilogue = STORE,
    experts: Experts | None = None,
) -> Tensor:
    """x @ weight^T + bias, summed in fp32 in ascending K.

    x: [M, K] F; weight: from pack_dense of [N, K], F; bias: [N] F; out: [M, N] F, or [M, up to N / 2] if the epilogue
    multiplies gate and up. norm: [K] of x's dtype, to multiply rms_norm(x, norm, norm_eps) instead of x. epilogue: what
    is done with the product. All matmuls take these, with the bits of the separate ops.

    experts (mixture of experts, Shazeer et al. 2017): each row is multiplied by its expert's weights: weight is a stack
    of them, [E, *packed shape], like bias and int8's scale, [E, N]. A row's product has the bits that it has with these
    weights alone. Products that are summed over a token's experts are rounded to out's dtype, then added up times their
    weights in ascending j by one fp32 fma each, and rounded; the epilogue, STORE or ADD, takes the sum.
    """
    if experts is None:
        kernels.matmul_dense.default(x, weight, bias, norm, norm_eps, epilogue, out)
    else:
        kernels.experts_dense.default(x, weight, bias, norm, norm_eps, epilogue, *experts, out)
    return out


def matmul_w8a16(
    x: Tensor,
    weight: Tensor,
    scale: Tensor,
    bias: Tensor | None = None,
    *,
    out: Tensor,
    norm: Tensor | None = None,
    norm_eps: float = 0.0,
    epilogue: Epilogue = STORE,
    experts: Experts | None = None,
) -> Tensor:
    """x @ (q * scale)^T + bias with 8-bit weights, widened exactly, and activations as they are; fp32 sums in ascending
    K. Where float8 weights are packed with block_scales, q is times those.

    x: [M, K] F; weight: from pack_int8 or pack_float8 of q [N, K]; scale: [N] float32; bias: [N] F; out: [M, N] F.
    """
    if experts is None:
        kernels.matmul_w8a16.default(x, weight, scale, bias, norm, norm_eps, epilogue, out)
    else:
        kernels.experts_w8a16.default(x, weight, scale, bias, norm, norm_eps, epilogue, *experts, out)
    return out


def matmul_w8a8(
    x: Tensor,
    weight: Tensor,
    scale: Tensor,
    bias: Tensor | None = None,
    *,
    out: Tensor,
    norm: Tensor | None = None,
    norm_eps: float = 0.0,
    epilogue: Epilogue = STORE,
    experts: Experts | None = None,
) -> Tensor:
    """As matmul_w8a16 of int8 weights, but each row of x is quantised to int8 first (scale = max|x| / 127, half to
    even).

    The int32 sum is exact, so the result is the same on every instruction set. K: at most 131072. A row with an inf
    or NaN gives NaN throughout.
    """
    if experts is None:
        kernels.matmul_w8a8.default(x, weight, scale, bias, norm, norm_eps, epilogue, out)
    else:
        kernels.experts_w8a8.default(x, weight, scale, bias, norm, norm_eps, epilogue, *experts, out)
    return out


def matmul_gguf(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    out: Tensor,
    norm: Tensor | None = None,
    norm_eps: float = 0.0,
    epilogue: Epilogue = STORE,
    experts: Experts | None = None,
) -> Tensor:
    """x @ weight^T + bias with the weights as quantised in a GGUF file, and activations quantised in blocks of 32.

    x: [M, K] F; weight: from pack_gguf; bias: [N] F; out: [M, N] F. Each block of a row of x becomes int8 (scale =
    max|x| / 127, half to even), its dot products are exact, and blocks add up in fp32 in ascending K. A row with an inf
    or NaN gives NaN throughout.
    """
    if experts is None:
        kernels.matmul_gguf.default(x, weight, bias, norm, norm_eps, epilogue, out)
    else:
        kernels.experts_gguf.default(x, weight, bias, norm, norm_eps, epilogue, *experts, out)
    return out
