"""KV caches of float8_e4m3fn, which only the CUDA kernels have: tests/backends.py loads this, pytest does not."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from backends import suite
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pybatch import ops

E4M3 = torch.float8_e4m3fn
attention, writing = suite("test_attention", ops), suite("test_rope_kv_write", ops)
HALVES = (torch.float16, torch.bfloat16)


@settings(max_examples=20, deadline=None, derandomize=True)
@given(
    shape=attention.shapes.map(lambda shape: replace(shape, cache=E4M3)),
    mask=attention.masks,
    batch=st.lists(st.tuples(attention.lengths, st.integers(1, 40)), min_size=1, max_size=3),
)
def test_attention_matches_float64(shape: object, mask: object, batch: list[tuple[int, int]]) -> None:
    attention.test_matches_float64.hypothesis.inner_test(shape, mask, batch)


@pytest.mark.parametrize("dtype", HALVES)
def test_every_code_is_read_exactly(dtype: torch.dtype) -> None:
    """One token a code: its weight is 1 and its value all of V."""
    codes = torch.tensor([code for code in range(256) if code & 0x7F != 0x7F], dtype=torch.uint8).view(E4M3)
    shape, mask = attention.Shape(heads=1, kv_heads=1, head_dim=8, cache=E4M3, dtype=dtype), attention.Mask(window=1)
    sequence = attention.make_sequence(shape, len(codes), 0)
    sequence.v[:] = codes[:, None, None]
    sequence.v_scale[:] = 1
    (out,) = attention.attend(shape, mask, [(sequence, 0, len(codes))])
    assert torch.equal(out.float(), codes.float()[:, None, None].expand(out.shape))


def test_a_sequence_is_the_same_alone_and_in_any_batch() -> None:
    shape, mask = attention.Shape(cache=E4M3, dtype=torch.float16), attention.Mask()
    lengths = ((600, 1), (130, 40), (513, 1), (20, 20))
    work = [
        (attention.make_sequence(shape, length, seed), length - last, length)
        for seed, (length, last) in enumerate(lengths)
    ]
    for item, out in zip(work, attention.attend(shape, mask, work), strict=True):
        assert torch.equal(attention.attend(shape, mask, [item])[0], out)


def written(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """x [tokens, D] as K, not turned, and as V, each read back from the cache with its scale."""
    tokens, dim = x.shape
    shape = writing.Shape(heads=1, kv_heads=1, head_dim=dim, rotary_dim=0, cache=E4M3, dtype=dtype)
    batch = writing.Batch(shape, x.repeat(1, 3).to(dtype), torch.zeros(tokens).long(), torch.arange(tokens))
    cache = writing.Cache.empty(shape, tokens // shape.block_size + 1)
    writing.write(batch, cache)
    k, v = cache.slots()
    return k[:tokens, 0], v[:tokens, 0]


@pytest.mark.parametrize("dtype", [torch.float32, *HALVES])
def test_a_head_is_scaled_to_the_largest_code_and_rounded(dtype: torch.dtype) -> None:
    x = torch.randn(20, 64, generator=torch.Generator().manual_seed(0)) * torch.logspace(-3, 2, 20)[:, None]
    x[3] = 0
    exact = x.to(dtype).double()
    scale = exact.abs().amax(1, keepdim=True) / 448
    for got in written(x, dtype):
        # Half a unit of four significant bits, or of the smallest number.
        assert ((got - exact).abs() <= 1.0001 * torch.maximum(exact.abs() / 16, scale * 2.0**-10)).all()
        # The scale, a half, has eleven bits or the unit of the smallest halves.
        torch.testing.assert_close(got.abs().amax(1), exact.abs().amax(1), rtol=2.0**-11, atol=448 * 2.0**-25)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_not_finite_is_not_lost(value: float) -> None:
    x = torch.full((3, 8), 448.0)
    x[1, 5] = value
    for got in written(x, torch.float16):
        assert got[1].isnan().all()
        assert torch.equal(got[[0, 2]], torch.full((2, 8), 448.0).double())
