"""The activation functions of MLPs, gated and not, against float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ops.rows import FLOATS, apart, assert_rows_stand_alone, same_bits
from torch import Tensor
from torch.nn import functional

from pybatch import ops


def gelu_tanh(x: Tensor) -> Tensor:
    return functional.gelu(x, approximate="tanh")


PLAIN = {
    ops.gelu: lambda x: x / 2 * torch.erfc(-x / 2**0.5),  # of which functional.gelu loses the tail
    ops.gelu_tanh: gelu_tanh,
    ops.relu2: lambda x: x.clamp(min=0).square(),
}
ACTIVATIONS = {ops.silu_mul: functional.silu, ops.gelu_tanh_mul: gelu_tanh, **PLAIN}
RELATIVE = {torch.float32: 3e-6, torch.float16: 1.01 * 2**-11, torch.bfloat16: 1.01 * 2**-8}
activations = pytest.mark.parametrize("op", ACTIVATIONS, ids=lambda op: op.__name__)


def halves(op: object) -> int:
    """Of x, beside the one that the function is of."""
    return 1 if op in PLAIN else 2


def reference(op: object, x: Tensor) -> Tensor:
    gate, *up = x.double().chunk(halves(op), dim=1)
    return ACTIVATIONS[op](gate) * (up[0] if up else 1)


@activations
@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    rows=st.integers(0, 4),
    width=st.one_of(st.integers(0, 70), st.sampled_from([576, 1536])),
    dtype=st.sampled_from(FLOATS),
    scale=st.sampled_from([0.01, 1.0, 12.0]),
    seed=st.integers(0, 99),
)
def test_activation(op: object, rows: int, width: int, dtype: torch.dtype, scale: float, seed: int) -> None:
    x = (torch.randn(rows, halves(op) * width, generator=torch.Generator().manual_seed(seed)) * scale).to(dtype)
    torch.testing.assert_close(op(x).double(), reference(op, x), rtol=RELATIVE[dtype], atol=1e-6)


@activations
def test_extreme_gates(op: object) -> None:
    gates = [0.0, -0.0, 1e-40, 88.0, 1e4, 1e20, 3e38, -11.0, -20.0, -87.5, -88.5, -1e4, -1e20, -3e38]
    x = torch.tensor([(gates + [1.0] * len(gates))[: halves(op) * len(gates)]])
    wanted = reference(op, x)
    wanted[wanted > torch.finfo(torch.float32).max] = torch.inf
    # exp(-x^2 / 2), and x^2 is rounded; else exp(x), and on a GPU the 87.5 times log2(e) is: by 2^-24 of itself
    rtol = 2e-5 if op == ops.gelu else 5.3e-6
    torch.testing.assert_close(op(x).double(), wanted, rtol=rtol, atol=1e-35)


@activations
def test_infinite_gates_tend_to_their_limits_and_nan_stays(op: object) -> None:
    gates = [torch.inf, -torch.inf, torch.nan]
    out = op(torch.tensor([(gates + [2.0] * len(gates))[: 3 * halves(op)]]))
    torch.testing.assert_close(out, torch.tensor([[torch.inf, 0.0, torch.nan]]), equal_nan=True)


@activations
@pytest.mark.parametrize("dtype", FLOATS)
def test_rows_stand_alone(op: object, dtype: torch.dtype) -> None:
    x = torch.randn(40, halves(op) * 333, generator=torch.Generator().manual_seed(0)).to(dtype)
    x[5, 7] = torch.nan
    assert_rows_stand_alone(op, x)
    assert op(x).isnan().sum() == 1


@activations
def test_out_may_be_strided(op: object) -> None:
    x = torch.randn(3, halves(op) * 21)
    assert same_bits(op(x, apart(torch.zeros(3, 21))), op(x))


@pytest.mark.parametrize("op", PLAIN, ids=lambda op: op.__name__)
def test_out_may_be_x(op: object) -> None:
    x = torch.randn(3, 2000, generator=torch.Generator().manual_seed(0))
    wanted = op(x)
    assert same_bits(op(x, x), wanted)
    assert same_bits(x, wanted)


# ---- clamped_swiglu ----


def clamped_swiglu(x: Tensor, alpha: float, limit: float) -> Tensor:
    gate, up = x.double().chunk(2, dim=1)
    gate, up = gate.clamp(max=limit), up.clamp(-limit, limit)
    return gate * torch.sigmoid(alpha * gate) * (up + 1)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    rows=st.integers(0, 4),
    width=st.one_of(st.integers(0, 70), st.sampled_from([576, 2880])),
    dtype=st.sampled_from(FLOATS),
    scale=st.sampled_from([0.01, 1.0, 12.0]),
    alpha=st.sampled_from([1.702, 1.0]),
    limit=st.sampled_from([7.0, 0.5, 0.0]),
    seed=st.integers(0, 99),
)
def test_clamped_swiglu(
    rows: int, width: int, dtype: torch.dtype, scale: float, alpha: float, limit: float, seed: int
) -> None:
    x = (torch.randn(rows, 2 * width, generator=torch.Generator().manual_seed(seed)) * scale).to(dtype)
    actual = ops.clamped_swiglu(x, alpha=alpha, limit=limit).double()
    # up + 1 is rounded near -1
    torch.testing.assert_close(actual, clamped_swiglu(x, alpha, limit), rtol=RELATIVE[dtype], atol=2e-6)


def test_clamped_swiglu_of_what_is_not_finite() -> None:
    inf, nan = torch.inf, torch.nan
    x = torch.tensor([[inf, -inf, nan, 1.0, 1.0, 1.0, -1e20, 1.0, 1.0, 1.0, inf, -inf, nan, 1.0]])
    wanted = clamped_swiglu(x, 1.702, 7.0).float()
    wanted[0, 1] = 0.0
    torch.testing.assert_close(ops.clamped_swiglu(x), wanted, equal_nan=True)


@pytest.mark.parametrize("dtype", FLOATS)
def test_rows_of_clamped_swiglu_stand_alone(dtype: torch.dtype) -> None:
    x = torch.randn(40, 2 * 333, generator=torch.Generator().manual_seed(0)).mul(6).to(dtype)
    assert_rows_stand_alone(ops.clamped_swiglu, x)
    assert same_bits(ops.clamped_swiglu(x, apart(torch.zeros(40, 333)).to(dtype)), ops.clamped_swiglu(x))


@pytest.mark.host
def test_a_negative_limit_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="limit: expected no negative number, got -1"):
        ops.clamped_swiglu(torch.ones(1, 2), limit=-1.0)


# ---- xielu ----


def xielu(x: Tensor, alpha_p: float, alpha_n: float) -> Tensor:
    x = x.double()
    return torch.where(x > 0, alpha_p * x * x, (torch.expm1(x.clamp(max=-1e-6)) - x) * alpha_n) + x / 2


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    rows=st.integers(0, 4),
    width=st.one_of(st.integers(0, 70), st.sampled_from([576, 2880])),
    dtype=st.sampled_from(FLOATS),
    scale=st.sampled_from([0.01, 1.0, 12.0]),
    alpha_p=st.sampled_from([0.8, 3.0]),
    alpha_n=st.sampled_from([0.55, 1.7]),
    seed=st.integers(0, 99),
)
def test_xielu(
    rows: int, width: int, dtype: torch.dtype, scale: float, alpha_p: float, alpha_n: float, seed: int
) -> None:
    x = (torch.randn(rows, width, generator=torch.Generator().manual_seed(seed)) * scale).to(dtype)
    actual = ops.xielu(x, alpha_p=alpha_p, alpha_n=alpha_n)
    torch.testing.assert_close(actual.double(), xielu(x, alpha_p, alpha_n), rtol=RELATIVE[dtype], atol=2e-6)
    assert same_bits(ops.xielu(x.clone(), x, alpha_p=alpha_p, alpha_n=alpha_n), actual)


def test_xielu_of_what_is_large_or_none() -> None:
    x = torch.tensor([[0.0, -0.0, 1e10, -1e10, -80.0, -200.0, torch.inf, torch.nan]])
    wanted = xielu(x, 0.8, 1.1).float()
    torch.testing.assert_close(ops.xielu(x, alpha_p=0.8, alpha_n=1.1), wanted, equal_nan=True, rtol=3e-6, atol=1e-7)


@pytest.mark.parametrize("dtype", FLOATS)
def test_rows_of_xielu_stand_alone(dtype: torch.dtype) -> None:
    x = torch.randn(40, 333, generator=torch.Generator().manual_seed(0)).mul(6).to(dtype)
    assert_rows_stand_alone(lambda x: ops.xielu(x, alpha_p=0.8, alpha_n=1.1), x)
