"""Prefill attention by wgmma: the bits of mma.sync, and the tests of the op."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from simt import probes
from simt.device import SimtOps
from simt.suites import OPS, running, suite

HOPPER = SimtOps(capability=90)
TESTS = suite("test_attention")
HALVES = [torch.float16, torch.bfloat16]


def test_against_float64_and_bits_alone_against_bits_in_a_batch() -> None:
    probes.attention(HOPPER)
    probes.attend(HOPPER, torch.bfloat16, torch.bfloat16, 0)


@settings(max_examples=12, deadline=None, derandomize=True)
@given(
    dtype=st.sampled_from(HALVES), head_dim=st.sampled_from([64, 128]), group=st.sampled_from([1, 2, 3, 4, 8]),
    block_size=st.sampled_from([16, 32, 64]), window=st.sampled_from([0, 0, 1, 40, 200]),
    soft_cap=st.sampled_from([0.0, 20.0]), sinks=st.booleans(),
    batch=st.lists(st.tuples(st.integers(1, 300), st.integers(1, 150)), min_size=1, max_size=3),
)  # fmt: skip
def test_the_bits_are_those_of_mma_sync(
    dtype: torch.dtype, head_dim: int, group: int, block_size: int, window: int, soft_cap: float, sinks: bool,
    batch: list[tuple[int, int]],
) -> None:  # fmt: skip
    shape = TESTS.Shape(heads=2 * group, kv_heads=2, head_dim=head_dim, block_size=block_size, cache=dtype, dtype=dtype)
    check_bits(shape, TESTS.Mask(window=window, soft_cap=soft_cap, sinks=sinks), batch)


@pytest.mark.parametrize("window", [0, 700])
def test_splits_are_merged_as_by_mma_sync(window: int) -> None:
    shape = TESTS.Shape(heads=2, kv_heads=1, cache=torch.bfloat16, dtype=torch.bfloat16)
    check_bits(shape, TESTS.Mask(window=window), [(1300, 90), (1030, 10), (513, 2)])


def test_more_items_than_multiprocessors() -> None:
    shape = TESTS.Shape(heads=16, kv_heads=8, cache=torch.bfloat16, dtype=torch.bfloat16)
    check_bits(shape, TESTS.Mask(), [(140, 140)] * 2 + [(70, 70)] * 3)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("window", [0, 20])
@pytest.mark.parametrize("dtype", HALVES)
def test_what_is_not_finite_in_v_reaches_only_rows_that_see_it(dtype: torch.dtype, window: int, value: float) -> None:
    shape, mask = TESTS.Shape(cache=dtype, dtype=dtype), TESTS.Mask(window=window)
    begin, bad, end = 500, 531, 580
    sequence = TESTS.make_sequence(shape, end, seed=0)
    with running(TESTS, HOPPER):
        clean = TESTS.attended_by(HOPPER, shape, mask, begin, end)
        sequence.v[bad] = value
        (dirty,) = TESTS.attend(shape, mask, [(sequence, begin, end)])
    before, last = bad - begin, bad - begin + window if window else end - begin
    assert torch.equal(dirty[:before], clean[:before])
    assert not dirty[before:last].isfinite().any()
    assert torch.equal(dirty[last:], clean[last:])


def check_bits(shape: TESTS.Shape, mask: TESTS.Mask, batch: list[tuple[int, int]]) -> None:
    """batch: the length of each sequence, and how many of its last tokens are queries."""
    sequences = [TESTS.make_sequence(shape, length, seed) for seed, (length, _) in enumerate(batch)]
    work = [(s, max(0, length - last), length) for s, (length, last) in zip(sequences, batch, strict=True)]
    outs = []
    for ops in (OPS, HOPPER):
        with running(TESTS, ops):
            outs.append(TESTS.attend(shape, mask, work))
    assert all(torch.equal(first, second) for first, second in zip(*outs, strict=True))
