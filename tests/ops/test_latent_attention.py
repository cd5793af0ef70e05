"""latent_write and latent_attention against float64, and the bits of a row against everything around it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ops.rows import FLOATS, apart, assert_rows_stand_alone, same_bits, threads
from torch import Tensor

from pybatch import ops

TOLERANCE = {torch.float32: 2e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}


@dataclass(frozen=True)
class Shape:
    heads: int
    latent: int
    rotary: int
    block_size: int = 16
    cache: torch.dtype = torch.float32
    dtype: torch.dtype = torch.float32

    @property
    def width(self) -> int:
        return -(-(self.latent + self.rotary) // ops.LATENT_STEP) * ops.LATENT_STEP


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def attend(shape: Shape, work: list[tuple[Tensor, Tensor, int]], seed: int = 0) -> list[Tensor]:
    """Of each (q, keys, begin) the rows from `begin` on, in one call. The blocks are shuffled in a pool of NaN."""
    size, needed = shape.block_size, [-(-len(keys) // shape.block_size) for _, keys, _ in work]
    order = torch.randperm(sum(needed) + 2, generator=torch.Generator().manual_seed(seed)).int()
    pool = torch.full((len(order), 2, size, shape.width), math.nan, dtype=shape.cache)[:, 1]
    tables = torch.zeros(len(work), max(needed), dtype=torch.int32)
    first = 0
    for s, (_, keys, _) in enumerate(work):
        tables[s, : needed[s]] = order[first : first + needed[s]]
        for token, key in enumerate(keys.to(shape.cache)):
            pool[tables[s, token // size], token % size] = key
        first += needed[s]
    counts = [len(q) - begin for q, _, begin in work]
    q = torch.cat([q[begin:] for q, _, begin in work]).to(shape.dtype)
    starts = torch.tensor([0, *counts]).cumsum(0).int()
    lengths = torch.tensor([len(keys) for _, keys, _ in work], dtype=torch.int32)
    out = torch.empty(len(q), shape.heads * shape.latent, dtype=shape.dtype)
    ops.latent_attention(q, pool, tables, starts, lengths, 0.1, out=out)
    return list(out.split(counts))


def sequence(shape: Shape, length: int, seed: int) -> tuple[Tensor, Tensor]:
    return normal(length, shape.heads * shape.width, seed=seed) * 2, normal(length, shape.width, seed=seed + 1)


def reference(shape: Shape, q: Tensor, keys: Tensor) -> Tensor:
    exact = keys.to(shape.cache).double()
    heads = q.to(shape.dtype).double().view(len(q), shape.heads, shape.width)
    scores = torch.einsum("qhd,kd->hqk", heads, exact) * 0.1
    scores = scores.masked_fill(torch.ones(len(q), len(q)).triu(1).bool(), -math.inf)
    return torch.einsum("hqk,kd->qhd", scores.softmax(-1), exact[:, : shape.latent]).flatten(1)


shapes = st.builds(
    Shape,
    heads=st.integers(1, 30),
    latent=st.sampled_from([4, 16, 40, 128, 512]),
    rotary=st.sampled_from([2, 8, 64]),
    block_size=st.sampled_from([8, 16, 32]),
    cache=st.sampled_from(FLOATS),
    dtype=st.sampled_from(FLOATS),
)


@settings(max_examples=25, deadline=None)
@given(shapes, st.integers(1, 90), st.integers(0, 1000))
def test_attention_is_that_of_float64(shape: Shape, length: int, seed: int) -> None:
    q, keys = sequence(shape, length, seed)
    (out,) = attend(shape, [(q, keys, 0)])
    tolerance = TOLERANCE[shape.dtype]
    torch.testing.assert_close(out.double(), reference(shape, q, keys), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("cache", FLOATS)
def test_a_row_has_its_bits_whatever_is_around_it(cache: torch.dtype) -> None:
    """Over several splits: alone, in chunks, in batches, by any number of threads, in blocks of any size."""
    shape = Shape(13, 40, 8, cache=cache)
    q, keys = sequence(shape, 1100, 1)
    other = sequence(shape, 70, 5)
    (whole,) = attend(shape, [(q, keys, 0)])
    torch.testing.assert_close(whole.double(), reference(shape, q, keys), rtol=2e-5, atol=2e-5)
    for count, begin in ((1, 900), (2, 1)):
        with threads(count):
            assert same_bits(attend(shape, [(*other, 3), (q, keys, begin), (*other, 69)], seed=3)[1], whole[begin:])
            assert same_bits(attend(shape, [(q, keys, 1099)])[0], whole[1099:])
            for end in (1, 7, 512, 513, 1024):
                assert same_bits(attend(shape, [(q[:end], keys[:end], end // 2)], seed=end)[0], whole[end // 2 : end])
    for size in (8, 64):
        small = Shape(13, 40, 8, block_size=size, cache=cache)
        assert same_bits(attend(small, [(q, keys, 1000)])[0], whole[1000:])


@settings(max_examples=25, deadline=None)
@given(shapes, st.booleans(), st.integers(0, 20))
def test_what_is_written(shape: Shape, interleaved: bool, key_dim: int) -> None:
    tokens, head_dim, latent, rotary = 5, key_dim + shape.rotary, shape.latent, shape.rotary
    q = normal(tokens, shape.heads * head_dim, seed=1).to(shape.dtype)
    kv, norm = normal(tokens, latent + rotary, seed=2).to(shape.dtype), normal(latent, seed=3).to(shape.dtype)
    angles = normal(10, rotary // 2, seed=4)
    table = torch.cat([angles.cos(), angles.sin()], 1)
    positions, slots = torch.tensor([3, 4, 9, 0, 1]), torch.tensor([3, 4, -1, 17, 0])
    cache = torch.full((shape.block_size // 8 + 3, shape.block_size, shape.width), math.nan, dtype=shape.cache)
    out = torch.full((tokens, shape.heads * shape.width), 7.0, dtype=shape.dtype)
    ops.latent_write(q, kv, norm, 1e-5, positions, slots, table, cache, out, interleaved=interleaved)

    def rotated(x: Tensor) -> Tensor:
        """[tokens, ..., rotary]"""
        pairs = x.double().unflatten(-1, (-1, 2) if interleaved else (2, -1))
        a, b = pairs.unbind(-1 if interleaved else -2)
        shaped = angles[positions].double().view(tokens, *[1] * (x.dim() - 2), -1)
        cos, sin = shaped.cos(), shaped.sin()
        return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)

    tolerance = max(TOLERANCE[shape.dtype], TOLERANCE[shape.cache])
    heads = out.view(tokens, shape.heads, shape.width)
    assert (heads[..., :latent] == 7).all()
    assert (heads[..., latent + rotary :] == 0).all()
    expected = rotated(q.view(tokens, shape.heads, head_dim)[..., key_dim:])
    torch.testing.assert_close(heads[..., latent : latent + rotary].double(), expected, rtol=tolerance, atol=tolerance)

    x = kv[:, :latent].double()
    normed = x / (x.square().mean(1, keepdim=True) + 1e-5).sqrt() * norm.double()
    kept = torch.cat([normed, rotated(kv[:, latent:]), torch.zeros(tokens, shape.width - latent - rotary)], 1)
    flat = cache.flatten(0, 1)
    for token, slot in enumerate(slots.tolist()):
        if slot >= 0:
            torch.testing.assert_close(flat[slot].double(), kept[token], rtol=tolerance, atol=tolerance)
    assert flat.isfinite().all(1).sum() == (slots >= 0).sum()


def test_what_is_written_of_a_token_is_its_own() -> None:
    norm, table = normal(24, seed=1), normal(4, 8, seed=2)

    def write(rows: Tensor) -> Tensor:
        q, kv = rows[:, :60], rows[:, 60:]
        count = len(rows)
        cache, out = torch.zeros(1, 64, 32), torch.zeros(count, 3 * 32)
        zeros = torch.zeros(count, dtype=torch.int64)
        ops.latent_write(q, kv, norm, 1e-5, zeros, torch.arange(count), table, cache, out, interleaved=True)
        return torch.cat([out, cache[0, :count]], 1)

    assert_rows_stand_alone(write, normal(40, 60 + 32, seed=3))
    assert same_bits(write(apart(normal(2, 92, seed=3))), write(normal(2, 92, seed=3)))
