"""Activations, alone or of a gate beside what it multiplies."""

from __future__ import annotations

import torch
from torch import Tensor

from pybatch.ops.library import kernels


def _half_as_wide(x: Tensor) -> Tensor:
    """Kernels refuse what is no matrix."""
    return x.new_empty(x.shape[0], x.shape[1] // 2) if x.dim() == 2 else x


def gelu(x: Tensor, out: Tensor | None = None) -> Tensor:
    """x times the normal distribution's share below x (Hendrycks & Gimpel 2016). x, out: [rows, width] F; out may be
    x."""
    out = torch.empty_like(x) if out is None else out
    kernels.gelu.default(x, out)
    return out


def gelu_tanh(x: Tensor, out: Tensor | None = None) -> Tensor:
    """The tanh form of GELU; else as gelu."""
    out = torch.empty_like(x) if out is None else out
    kernels.gelu_tanh.default(x, out)
    return out


def relu2(x: Tensor, out: Tensor | None = None) -> Tensor:
    """max(x, 0)^2 (So et al. 2021); else as gelu."""
    out = torch.empty_like(x) if out is None else out
    kernels.relu2.default(x, out)
    return out


def xielu(
    x: Tensor, out: Tensor | None = None, *, alpha_p: float, alpha_n: float, beta: float = 0.5, eps: float = -1e-6
) -> Tensor:
    """alpha_p * x^2 + beta * x above 0, else alpha_n * (exp(min(x, eps)) - 1 - x) + beta * x (Huang 2024); shapes as
    gelu."""
    out = torch.empty_like(x) if out is None else out
    kernels.xielu.default(x, alpha_p, alpha_n, beta, eps, out)
    return out


def silu_mul(x: Tensor, out: Tensor | None = None) -> Tensor:
    """silu(gate) * up. x: [rows, 2 * width] F, gate in the first half of the columns; out: [rows, width]."""
    out = _half_as_wide(x) if out is None else out
    kernels.silu_mul.default(x, out)
    return out


def gelu_tanh_mul(x: Tensor, out: Tensor | None = None) -> Tensor:
    """gelu(gate) * up with the tanh form of GELU (Hendrycks & Gimpel 2016); shapes as silu_mul."""
    out = _half_as_wide(x) if out is None else out
    kernels.gelu_tanh_mul.default(x, out)
    return out


def clamped_swiglu(x: Tensor, out: Tensor | None = None, *, alpha: float = 1.702, limit: float = 7.0) -> Tensor:
    """gate * sigmoid(alpha * gate) * (up + 1), of gates up to limit and ups from -limit to limit (gpt-oss); shapes as
    silu_mul."""
    out = _half_as_wide(x) if out is None else out
    kernels.clamped_swiglu.default(x, alpha, limit, out)
    return out


def sigmoid_mul(x: Tensor, gate: Tensor, out: Tensor | None = None) -> Tensor:
    """x * sigmoid(gate). x, gate, out: [rows, width] F; out may be x."""
    out = torch.empty_like(x) if out is None else out
    kernels.sigmoid_mul.default(x, gate, out)
    return out


def gelu_tanh_gate(x: Tensor, gate: Tensor, out: Tensor | None = None) -> Tensor:
    """x * gelu_tanh(gate); shapes as sigmoid_mul."""
    out = torch.empty_like(x) if out is None else out
    kernels.gelu_tanh_gate.default(x, gate, out)
    return out
