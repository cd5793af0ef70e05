"""rms_norm, layer_norm and add_normed against float64."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ops.rows import FLOATS, apart, assert_rows_stand_alone, same_bits
from torch import Tensor

from pybatch import ops

# A result is rounded at most twice; fp32 sums add a little more. f16 has subnormals below 6e-5.
RELATIVE = {torch.float32: 3e-6, torch.float16: 2.01 * 2**-11, torch.bfloat16: 2.01 * 2**-8}
ABSOLUTE = {torch.float32: 3e-6, torch.float16: 1e-3, torch.bfloat16: 1e-3}

widths = st.one_of(st.integers(1, 70), st.sampled_from([127, 128, 576, 1000, 4096]))


def normal(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0, scale: float = 1.0) -> Tensor:
    return (torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * scale).to(dtype)


def rms_norm_reference(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    x = x.double()
    return x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * weight.double()


def layer_norm_reference(x: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> Tensor:
    bias = None if bias is None else bias.double()
    return torch.nn.functional.layer_norm(x.double(), x.shape[-1:], weight.double(), bias, eps)


def assert_close(actual: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(actual.double(), wanted, rtol=RELATIVE[actual.dtype], atol=ABSOLUTE[actual.dtype])


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    rows=st.integers(0, 5),
    width=widths,
    dtype=st.sampled_from(FLOATS),
    scale=st.sampled_from([1e-3, 1.0, 30.0]),
    with_residual=st.booleans(),
    seed=st.integers(0, 99),
)
def test_rms_norm(rows: int, width: int, dtype: torch.dtype, scale: float, with_residual: bool, seed: int) -> None:
    x, weight = normal(rows, width, dtype=dtype, seed=seed, scale=scale), normal(width, dtype=dtype, seed=seed + 1)
    residual = normal(rows, width, dtype=dtype, seed=seed + 2) if with_residual else None
    total = x if residual is None else x + residual
    out = ops.rms_norm(x, weight, 1e-5, residual)
    assert residual is None or torch.equal(residual, total)
    assert_close(out, rms_norm_reference(total, weight, 1e-5))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    rows=st.integers(0, 5),
    width=widths,
    dtype=st.sampled_from(FLOATS),
    mean=st.sampled_from([0.0, 10.0]),
    with_bias=st.booleans(),
    with_residual=st.booleans(),
    seed=st.integers(0, 99),
)
def test_layer_norm(
    rows: int, width: int, dtype: torch.dtype, mean: float, with_bias: bool, with_residual: bool, seed: int
) -> None:
    x, weight = normal(rows, width, dtype=dtype, seed=seed) + mean, normal(width, dtype=dtype, seed=seed + 1)
    bias = normal(width, dtype=dtype, seed=seed + 2) if with_bias else None
    residual = normal(rows, width, dtype=dtype, seed=seed + 3) if with_residual else None
    total = x if residual is None else x + residual
    out = ops.layer_norm(x, weight, bias, 1e-5, residual)
    assert residual is None or torch.equal(residual, total)
    assert_close(out, layer_norm_reference(total, weight, bias, 1e-5))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    rows=st.integers(0, 5),
    width=widths,
    dtype=st.sampled_from(FLOATS),
    with_norm=st.booleans(),
    factor=st.sampled_from([1.0, 0.22, -3.0]),
    scale=st.sampled_from([1.0, 1.0, 0.017]),
    seed=st.integers(0, 99),
)
def test_add_normed(
    rows: int, width: int, dtype: torch.dtype, with_norm: bool, factor: float, scale: float, seed: int
) -> None:
    """Against float64, and with the bits of its steps one by one."""
    x, residual = normal(rows, width, dtype=dtype, seed=seed), normal(rows, width, dtype=dtype, seed=seed + 1)
    weight = normal(width, dtype=dtype, seed=seed + 2) if with_norm else None
    added = x if weight is None else ops.rms_norm(x, weight, 1e-5)
    steps = residual + (added.float() * torch.tensor(factor)).to(dtype)
    steps = (steps.float() * torch.tensor(scale)).to(dtype)
    exact = x.double() if weight is None else rms_norm_reference(x, weight, 1e-5)
    wanted = (residual.double() + factor * exact) * scale
    before = residual.double().abs()
    assert ops.add_normed(x, residual, weight, 1e-5, factor, scale) is residual
    assert torch.equal(residual, steps)
    bound = 4 * RELATIVE[dtype] * scale * (abs(factor) * exact.abs() + before) + 1e-6
    assert ((residual.double() - wanted).abs() <= bound).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_rms_norm_rounds_before_the_weight_as_the_models_were_trained(dtype: torch.dtype) -> None:
    x, weight = normal(64, 576, dtype=dtype), normal(576, dtype=dtype, seed=1)
    inverse = (x.float().square().mean(-1, keepdim=True) + 1e-5).rsqrt()
    wanted = weight * (x.float() * inverse).to(dtype)
    equal = (ops.rms_norm(x, weight, 1e-5) == wanted).double().mean()
    assert equal > 0.999  # the sums run in another order, so that a rounding may fall to the other side


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("norm", ["rms_norm", "layer_norm", "add_normed"])
@pytest.mark.parametrize(("rows", "width"), [(7, 33), (40, 576)])
def test_rows_stand_alone(norm: str, dtype: torch.dtype, rows: int, width: int) -> None:
    x, weight = normal(rows, width, dtype=dtype), normal(width, dtype=dtype, seed=1)
    x[1, 0], x[3, -1] = torch.nan, torch.inf
    op: Callable[[Tensor], Tensor] = {
        "rms_norm": lambda rows: ops.rms_norm(rows, weight, 1e-5),
        "layer_norm": lambda rows: ops.layer_norm(rows, weight, weight, 1e-5),
        "add_normed": lambda rows: ops.add_normed(rows, torch.ones_like(rows), weight, 1e-5, 0.5),
    }[norm]
    assert_rows_stand_alone(op, x)
    finite = [i for i in range(rows) if i not in (1, 3)]
    assert op(x)[finite].isfinite().all()
    assert op(x)[1].isnan().any()


def test_out_and_residual_may_be_strided_and_out_may_be_x() -> None:
    x, weight, residual = normal(4, 37), normal(37, seed=1), normal(4, 37, seed=2)
    wanted = ops.rms_norm(x, weight, 1e-5, residual.clone())
    strided, out = apart(residual), apart(torch.zeros_like(x))
    assert same_bits(ops.rms_norm(x, weight, 1e-5, strided, out), wanted)
    assert same_bits(strided, residual + x)
    assert same_bits(ops.rms_norm(x, weight, 1e-5, residual, x), wanted)
    x, strided = apart(normal(4, 37)), apart(torch.ones(4, 37))
    wanted = ops.add_normed(x.clone(), torch.ones(4, 37), weight, 1e-5, 0.3)
    assert same_bits(ops.add_normed(x, strided, weight, 1e-5, 0.3), wanted)
