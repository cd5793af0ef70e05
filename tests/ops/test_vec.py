"""The vector type under the kernels: conversions of every 16-bit float, and exp, seen through ops."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ops.rows import bits, threads
from torch import Tensor

from pybatch import ops

HALVES = [torch.float16, torch.bfloat16]


def converted(values: Tensor, dtype: torch.dtype) -> Tensor:
    """values by way of an embedding of one row, which does nothing but convert."""
    return ops.embedding(torch.tensor([0]), values[None], torch.empty(1, len(values), dtype=dtype), 1)[0]


def every(dtype: torch.dtype) -> Tensor:
    return torch.arange(-(2**15), 2**15, dtype=torch.int16).view(dtype)


def assert_same(actual: Tensor, wanted: Tensor) -> None:
    """The same bits, but any NaN for a NaN."""
    assert torch.equal(actual.isnan(), wanted.isnan())
    assert torch.equal(bits(actual.nan_to_num(0)), bits(wanted.nan_to_num(0)))


@pytest.mark.parametrize("dtype", HALVES)
def test_every_half_widens_exactly(dtype: torch.dtype) -> None:
    assert_same(converted(every(dtype), torch.float32), every(dtype).float())


@pytest.mark.parametrize("dtype", HALVES)
def test_floats_round_to_the_nearest_half_and_ties_to_even(dtype: torch.dtype) -> None:
    """Around every half, and around the middle between it and the next: subnormals and overflow included."""
    halves = every(dtype)[every(dtype).isfinite()].double().sort().values
    middles = (halves[1:] + halves[:-1]) / 2
    largest = halves[-1] + (halves[-1] - halves[-2]) / 2  # where rounding to infinity begins
    points = torch.cat([halves, middles, largest[None], -largest[None]]).float().numpy()
    near = [points, np.nextafter(points, np.float32(np.inf)), np.nextafter(points, np.float32(-np.inf))]
    values = torch.from_numpy(np.concatenate([*near, np.array([np.inf, -np.inf, np.nan, -0.0], dtype=np.float32)]))
    assert_same(converted(values, dtype), values.to(dtype))


@pytest.mark.parametrize("count", range(1, 35))
def test_tails_are_converted_alike(count: int) -> None:
    values = torch.linspace(-3, 3, 35)
    assert torch.equal(converted(values[:count], torch.bfloat16), values[:count].bfloat16())


def test_exp_is_accurate_to_two_units_in_the_last_place() -> None:
    x = torch.linspace(-86, 86, 400_001)
    # For x <= 0, silu(x) / x = exp(x) / (1 + exp(x)); for x >= 0, 1 / (1 + exp(-x)): two more roundings each.
    out = ops.silu_mul(torch.stack([x, torch.ones_like(x)]).view(1, -1))[0].double()
    wanted = x.double() * torch.sigmoid(x.double())
    assert ((out - wanted).abs() <= 4 * 2**-24 * wanted.abs()).all()


def test_exp_of_zero_is_one_and_far_below_zero_it_is_zero() -> None:
    """As sampling relies on: the largest logit weighs 1, and one that is masked weighs nothing."""
    logits = torch.tensor([[0.0, -100.0, -torch.inf]])
    logprob, _, _, top = ops.token_logprobs(logits, torch.tensor([0]), 3)
    assert logprob.item() == 0.0
    assert top.tolist() == [[0.0, -100.0, -torch.inf]]


@pytest.mark.parametrize("count", [1, 3])
def test_subnormal_numbers_are_kept_whatever_the_program_has_set(count: int) -> None:
    """As it may have on one thread alone: kernels compute the same on all, and leave the setting as it was."""
    codes = torch.arange(1, 8, dtype=torch.uint8).repeat(32, 5)[:, :32].contiguous()  # the subnormal ones
    float8, ones = codes.view(torch.float8_e4m3fn), torch.ones(32)
    rows, small = torch.eye(32).repeat(20, 1), torch.full((640, 32), 2.0**-80)
    packed, dense = ops.pack_float8(float8), ops.pack_dense(torch.full((32, 32), 2.0**-62))
    with threads(count):
        if not torch.set_flush_denormal(True):
            pytest.skip("this processor cannot")
        try:
            widened = ops.matmul_w8a16(rows, packed, ones, out=torch.empty(640, 32))
            products = ops.matmul_dense(small, dense, out=torch.empty(640, 32))
            flushed = torch.full((32,), 2.0**-80) * 2.0**-62
        finally:
            torch.set_flush_denormal(False)
    assert torch.equal(widened, float8.float().t().repeat(20, 1))
    assert (products == 2.0**-137).all()
    assert (flushed == 0).all()
