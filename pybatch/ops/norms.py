"""Norms, alone or with the residual's sum."""

from __future__ import annotations

import torch
from torch import Tensor

from pybatch.ops.library import kernels


def rms_norm(
    x: Tensor, weight: Tensor, eps: float, residual: Tensor | None = None, out: Tensor | None = None
) -> Tensor:
    """x / sqrt(mean(x^2) + eps) * weight over the last dimension (Zhang & Sennrich 2019).

    x: [rows, width] F; weight: [width] of x's dtype; out: like x. With residual ([rows, width], x's dtype),
    ``residual += x`` first, in place, and the sum is normalised.
    """
    out = torch.empty_like(x) if out is None else out
    kernels.rms_norm.default(x, weight, eps, residual, out)
    return out


def layer_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    eps: float,
    residual: Tensor | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """(x - mean) / sqrt(var + eps) * weight + bias over the last dimension (Ba et al. 2016); else as rms_norm."""
    out = torch.empty_like(x) if out is None else out
    kernels.layer_norm.default(x, weight, bias, eps, residual, out)
    return out


def add_normed(
    x: Tensor,
    residual: Tensor,
    weight: Tensor | None = None,
    eps: float = 0.0,
    factor: float = 1.0,
    scale: float = 1.0,
) -> Tensor:
    """residual = (residual + factor * rms_norm(x, weight, eps)) * scale, in place, with the bits of the separate ops;
    without weight, x for its norm. x, residual: [rows, width] F; weight: [width] of x's dtype. Returns residual."""
    kernels.add_normed.default(x, weight, eps, factor, scale, residual)
    return residual


def gated_rms_norm(x: Tensor, gate: Tensor, weight: Tensor, eps: float, out: Tensor | None = None) -> Tensor:
    """rms_norm of each head of x, times silu(gate). x, gate, out: [T, heads * width] F; weight: [width] of x's dtype.

    out may be x."""
    out = torch.empty_like(x) if out is None else out
    kernels.gated_rms_norm.default(x, gate, weight, eps, out)
    return out
