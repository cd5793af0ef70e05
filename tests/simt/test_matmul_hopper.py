"""Matmuls on Hopper: the bits of other chips, of W8A8 with them those of the CPU, and its tests with more rows."""

from __future__ import annotations

import backends
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ops.rows import FLOATS
from torch import Tensor

from pybatch.ops import Epilogue
from simt.device import SimtOps
from simt.suites import OPS

ROWS = 33  # from which on wgmma is chosen
HOPPER = SimtOps(capability=90)


class ManyRows:
    """The ops on Hopper; W8A8 with its rows repeated until they are enough for wgmma, and all repetitions alike."""

    def __getattr__(self, name: str) -> object:
        return getattr(HOPPER, name)

    def matmul_w8a8(self, x: Tensor, *weights: Tensor, out: Tensor, **fused: object) -> Tensor:
        times = -(-ROWS // max(1, len(x)))
        many = HOPPER.matmul_w8a8(x.repeat(times, 1), *weights, out=out.repeat(times, 1), **fused)
        for repetition in many.split(max(1, len(x))):
            assert torch.equal(repetition.nan_to_num(7), many[: len(x)].nan_to_num(7))
        return out.copy_(many[: len(x)])


TESTS = backends.suite("test_matmul", ManyRows())
test_of_a_zero_row = TESTS.test_w8a8_of_a_zero_row_is_the_bias
test_of_tiny_rows = TESTS.test_w8a8_of_tiny_rows
test_sums_at_the_extremes = TESTS.test_w8a8_sums_exactly_at_the_extremes


def test_a_row_that_is_not_finite_stays_alone() -> None:
    TESTS.test_a_row_that_is_not_finite_stays_alone("w8a8")


KERNELS = ["dense", "w8a16", "float8", "float8-blocks", "w8a8"]
kernels = pytest.mark.parametrize("kernel", KERNELS)
HALVES = (torch.float16, torch.bfloat16)


def both(kernel: str, x: Tensor, n: int, bias: Tensor | None, out: Tensor, **fused: object) -> tuple[Tensor, Tensor]:
    """By the kernel of other chips and by Hopper's."""
    weight = TESTS.random(n, x.shape[1], seed=1)
    if kernel == "dense":
        weights: tuple[Tensor, ...] = (OPS.pack_dense(weight.to(x.dtype)),)
    else:
        weights = TESTS.packed_bytes(kernel, weight)
    name = f"matmul_{'w8a16' if kernel.startswith('float8') else kernel}"
    first, second = (getattr(ops, name)(x, *weights, bias, out=out.clone(), **fused) for ops in (OPS, HOPPER))
    return first, second


@kernels
@settings(max_examples=12, deadline=None)
@given(
    m=st.integers(1, 40) | st.integers(1, 400), n=st.integers(1, 200), k=st.integers(1, 400), bias=st.booleans(),
    x_type=st.sampled_from(HALVES), out_type=st.sampled_from(FLOATS), add=st.booleans(),
)  # fmt: skip
def test_the_bits_are_those_of_other_chips(
    kernel: str, m: int, n: int, k: int, bias: bool, x_type: torch.dtype, out_type: torch.dtype, add: bool
) -> None:
    if kernel != "w8a8":
        k += -k % 8  # else the rows are not aligned, and the other kernel takes them
    x, out = TESTS.random(m, k, dtype=x_type), TESTS.random(m, n, dtype=out_type, seed=2)
    b = TESTS.random(n, seed=3) if bias else None
    first, second = both(kernel, x, n, b, out, epilogue=Epilogue.ADD if add else Epilogue.STORE)
    assert torch.equal(first, second)


@kernels
@pytest.mark.parametrize("epilogue", [Epilogue.SILU_MUL, Epilogue.GELU_TANH_MUL])
@pytest.mark.parametrize(("m", "width", "k"), [(1, 40, 64), (30, 72, 264), (257, 40, 136), (360, 160, 24)])
def test_gated_products_have_the_bits_of_other_chips(
    kernel: str, epilogue: Epilogue, m: int, width: int, k: int
) -> None:
    x, out = TESTS.random(m, k, dtype=torch.bfloat16), torch.empty(m, width, dtype=torch.bfloat16)
    first, second = both(kernel, x, -(-width // 16) * 32, None, out, epilogue=epilogue)
    assert torch.equal(first, second)


@kernels
@pytest.mark.parametrize(("m", "n"), [(70, 700), (400, 600), (1100, 260)])  # by every tile
def test_more_tiles_than_multiprocessors(kernel: str, m: int, n: int) -> None:
    x, out = TESTS.random(m, 72, dtype=torch.bfloat16), torch.empty(m, n)
    first, second = both(kernel, x, n, None, out)
    assert torch.equal(first, second)


@kernels
@pytest.mark.parametrize(("m", "n"), [(20, 200), (12, 300), (30, 350), (9, 500)])
def test_warps_that_share_the_rows_of_x(kernel: str, m: int, n: int) -> None:
    x, out = TESTS.random(m, 1160, dtype=torch.bfloat16), torch.empty(m, n)
    first, second = both(kernel, x, n, None, out)
    assert torch.equal(first, second)


@kernels
def test_rows_that_are_not_aligned(kernel: str) -> None:
    x = TESTS.random(ROWS, 101, dtype=torch.bfloat16)
    first, second = both(kernel, x, 40, None, torch.empty(ROWS, 40))
    assert torch.equal(first, second)
