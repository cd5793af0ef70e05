"""paged_attention against attention written out in float64, and the bits of a row against everything around it."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pybatch import _C, ops

SPLIT = 512  # kAttentionSplit
TOLERANCE = {torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 8e-3}


@dataclass(frozen=True)
class Shape:
    heads: int = 6
    kv_heads: int = 2
    head_dim: int = 64
    block_size: int = 16
    cache: torch.dtype = torch.float32
    dtype: torch.dtype = torch.float32


@dataclass(frozen=True)
class Mask:
    window: int = 0
    soft_cap: float = 0.0
    sinks: bool = False


@dataclass
class Sequence:
    q: Tensor  # [length, heads, D]
    k: Tensor  # [length, kv_heads, D], as the cache holds it (int8: not yet scaled)
    v: Tensor
    k_scale: Tensor  # [length, kv_heads], ones unless int8
    v_scale: Tensor


def make_sequence(shape: Shape, length: int, seed: int) -> Sequence:
    generator = torch.Generator().manual_seed(seed)

    def normal(heads: int) -> Tensor:
        return torch.randn(length, heads, shape.head_dim, generator=generator)

    q = (normal(shape.heads) * 2).to(shape.dtype)
    k, v = normal(shape.kv_heads), normal(shape.kv_heads)
    if shape.cache != torch.int8:
        one = torch.ones(length, shape.kv_heads)
        return Sequence(q, k.to(shape.cache), v.to(shape.cache), one, one)
    k_scale, v_scale = k.abs().amax(-1) / 127, v.abs().amax(-1) / 127
    return Sequence(
        q,
        (k / k_scale[..., None]).round().to(torch.int8),
        (v / v_scale[..., None]).round().to(torch.int8),
        k_scale,
        v_scale,
    )


def reference(shape: Shape, mask: Mask, sequence: Sequence, sinks: Tensor | None) -> Tensor:
    """All rows of one sequence, [length, heads, D], in float64."""
    group = shape.heads // shape.kv_heads
    k = (sequence.k.double() * sequence.k_scale[..., None].double()).repeat_interleave(group, 1)
    v = (sequence.v.double() * sequence.v_scale[..., None].double()).repeat_interleave(group, 1)
    logits = torch.einsum("qhd,khd->hqk", sequence.q.double(), k) / math.sqrt(shape.head_dim)
    if mask.soft_cap:
        logits = mask.soft_cap * torch.tanh(logits / mask.soft_cap)
    back = torch.arange(len(k))[:, None] - torch.arange(len(k))[None, :]
    seen = back >= 0
    if mask.window:
        seen &= back < mask.window
    logits = logits.masked_fill(~seen, -math.inf)
    if sinks is not None:
        logits = torch.cat([logits, sinks.double()[:, None, None].expand(-1, len(k), 1)], 2)
    probabilities = logits.softmax(-1)[..., : len(k)]
    return torch.einsum("hqk,khd->qhd", probabilities, v)


def sinks_of(shape: Shape, mask: Mask) -> Tensor | None:
    return torch.linspace(-2, 3, shape.heads) if mask.sinks else None


def attend(shape: Shape, mask: Mask, work: list[tuple[Sequence, int, int]], seed: int = 0) -> list[Tensor]:
    """Runs rows [begin, end) of every sequence in one call, each with its first `end` tokens in the cache.

    The blocks lie shuffled in a pool whose every other value is NaN (int8: 127 with NaN scales), and apart in it.
    """
    needed = [-(-end // shape.block_size) for _, _, end in work]
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(sum(needed) + 3, generator=generator).int()
    int8 = shape.cache == torch.int8
    size, kv_heads, depth = shape.block_size, shape.kv_heads, shape.head_dim

    def pool(*block: int, dtype: torch.dtype = shape.cache) -> Tensor:
        filler = 127 if dtype == torch.int8 else math.nan
        return torch.full((len(order), 2, *block), filler, dtype=dtype)[:, 1]

    k_cache, v_cache = pool(kv_heads, depth, size), pool(kv_heads, size, depth)
    k_scale, v_scale = (pool(kv_heads, size, dtype=torch.float32) for _ in range(2)) if int8 else (None, None)
    tables = torch.full((len(work), max(needed) + 1), -1, dtype=torch.int32)
    used = 0
    for row, (sequence, _, end) in enumerate(work):
        for i in range(needed[row]):
            block = int(order[used])
            used += 1
            tables[row, i] = block
            here = slice(i * size, min(end, (i + 1) * size))
            count = here.stop - here.start
            k_cache[block, :, :, :count] = sequence.k[here].permute(1, 2, 0)
            v_cache[block, :, :count] = sequence.v[here].permute(1, 0, 2)
            if k_scale is not None and v_scale is not None:
                k_scale[block, :, :count] = sequence.k_scale[here].t()
                v_scale[block, :, :count] = sequence.v_scale[here].t()
    counts = [end - begin for _, begin, end in work]
    out = ops.paged_attention(
        torch.cat([sequence.q[begin:end] for sequence, begin, end in work]).flatten(1),
        k_cache,
        v_cache,
        tables,
        torch.tensor([0, *counts]).cumsum(0).int(),
        torch.tensor([end for _, _, end in work], dtype=torch.int32),
        depth**-0.5,
        k_scale=k_scale,
        v_scale=v_scale,
        window=mask.window,
        soft_cap=mask.soft_cap,
        sinks=sinks_of(shape, mask),
    )
    return list(out.view(-1, shape.heads, depth).split(counts))


shapes = st.builds(
    lambda kv_heads, group, **rest: Shape(heads=kv_heads * group, kv_heads=kv_heads, **rest),
    kv_heads=st.sampled_from([1, 2, 3]),
    group=st.sampled_from([1, 2, 3, 4, 5, 7, 8, 13]),
    head_dim=st.sampled_from([8, 24, 32, 40, 64, 80, 96, 128, 192, 256]),
    block_size=st.sampled_from([8, 16, 32, 64]),
    cache=st.sampled_from([torch.float32, torch.float16, torch.bfloat16, torch.int8]),
    dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
)
masks = st.builds(
    Mask,
    window=st.sampled_from([0, 0, 1, 7, 64, 600]),
    soft_cap=st.sampled_from([0.0, 0.0, 3.0, 50.0]),
    sinks=st.booleans(),
)
lengths = st.one_of(st.integers(1, 70), st.sampled_from([128, 511, 512, 513, 700, 1025]))


@settings(max_examples=40, deadline=None, derandomize=True)
@given(shape=shapes, mask=masks, batch=st.lists(st.tuples(lengths, st.integers(1, 90)), min_size=1, max_size=4))
def test_matches_float64(shape: Shape, mask: Mask, batch: list[tuple[int, int]]) -> None:
    sequences = [make_sequence(shape, length, seed) for seed, (length, _) in enumerate(batch)]
    work = [(s, max(0, length - last), length) for s, (length, last) in zip(sequences, batch, strict=True)]
    for out, (sequence, begin, _) in zip(attend(shape, mask, work), work, strict=True):
        wanted = reference(shape, mask, sequence, sinks_of(shape, mask))[begin:]
        torch.testing.assert_close(out.double(), wanted, rtol=TOLERANCE[shape.dtype], atol=TOLERANCE[shape.dtype])
