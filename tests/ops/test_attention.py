"""paged_attention against attention written out in float64, and the bits of a row against everything around it."""

from __future__ import annotations

import functools
import itertools
import math
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from ops.int4_packing import by_element, groups_of, pack_k, pack_v
from torch import Tensor

from pybatch import ops

SPLIT = 512  # kAttentionSplit
INT4 = torch.uint8  # the type of an int4 cache's bytes
LARGEST = {torch.int8: 127, torch.float8_e4m3fn: 448, INT4: 7}  # the largest code of a quantised cache
INTEGERS = (torch.int8, INT4)
TOLERANCE = {torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 8e-3}
WORDS = 1e-3  # of integer caches, whose queries and probabilities a kernel may round to 16 bits


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
    k: Tensor  # [length, kv_heads, D], as the cache holds it (quantised: codes, not yet scaled)
    v: Tensor
    k_scale: Tensor  # [length, kv_heads, groups] float16, ones unless the cache is quantised
    v_scale: Tensor


def make_sequence(shape: Shape, length: int, seed: int) -> Sequence:
    generator = torch.Generator().manual_seed(seed)

    def normal(heads: int) -> Tensor:
        return torch.randn(length, heads, shape.head_dim, generator=generator)

    q = (normal(shape.heads) * 2).to(shape.dtype)
    k, v = normal(shape.kv_heads), normal(shape.kv_heads)
    if shape.cache not in LARGEST:
        one = torch.ones(length, shape.kv_heads, 1)
        return Sequence(q, k.to(shape.cache), v.to(shape.cache), one, one)

    def codes(x: Tensor, scale: Tensor) -> Tensor:
        largest = LARGEST[shape.cache]
        x = (x / per_element(shape, scale)).clamp(-largest, largest)
        return x.round().to(torch.int8) if shape.cache in INTEGERS else x.to(shape.cache)

    groups = groups_of(shape.head_dim) if shape.cache == INT4 else [slice(None)]
    k_scale, v_scale = (
        torch.stack([x[..., group].abs().amax(-1) for group in groups], -1).div(LARGEST[shape.cache]).half()
        for x in (k, v)
    )
    return Sequence(q, codes(k, k_scale), codes(v, v_scale), k_scale, v_scale)


def per_element(shape: Shape, scale: Tensor) -> Tensor:
    return by_element(scale, shape.head_dim) if shape.cache == INT4 else scale


def sinks_of(shape: Shape, mask: Mask) -> Tensor | None:
    return torch.linspace(-2, 3, shape.heads) if mask.sinks else None


def reference(shape: Shape, mask: Mask, sequence: Sequence, begin: int) -> Tensor:
    """Rows [begin, length) of one sequence, [rows, heads, D], in float64."""
    group = shape.heads // shape.kv_heads
    k = (sequence.k.double() * per_element(shape, sequence.k_scale).double()).repeat_interleave(group, 1)
    v = (sequence.v.double() * per_element(shape, sequence.v_scale).double()).repeat_interleave(group, 1)
    logits = torch.einsum("qhd,khd->hqk", sequence.q[begin:].double(), k) / math.sqrt(shape.head_dim)
    if mask.soft_cap:
        logits = mask.soft_cap * torch.tanh(logits / mask.soft_cap)
    back = torch.arange(begin, len(k))[:, None] - torch.arange(len(k))[None, :]
    seen = back >= 0
    if mask.window:
        seen &= back < mask.window
    logits = logits.masked_fill(~seen, -math.inf)
    sinks = sinks_of(shape, mask)
    if sinks is not None:
        logits = torch.cat([logits, sinks.double()[:, None, None].expand(-1, len(k) - begin, 1)], 2)
    probabilities = logits.softmax(-1)[..., : len(k)]
    return torch.einsum("hqk,khd->qhd", probabilities, v)


def attend(shape: Shape, mask: Mask, work: list[tuple[Sequence, int, int]], seed: int = 0) -> list[Tensor]:
    """Runs rows [begin, end) of every sequence in one call, each with its first `end` tokens in the cache.

    The blocks lie shuffled in a pool whose every other value is NaN (integers: 127 with NaN scales), and apart in it.
    """
    needed = [-(-end // shape.block_size) for _, _, end in work]
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(sum(needed) + 3, generator=generator).int()
    scaled, packed = shape.cache in LARGEST, shape.cache == INT4
    size, kv_heads, depth = shape.block_size, shape.kv_heads, shape.head_dim
    groups = [len(groups_of(depth))] if packed else []

    def pool(*block: int, dtype: torch.dtype = shape.cache) -> Tensor:
        filler = 127 if dtype in INTEGERS else math.nan
        return torch.full((len(order), 2, *block), filler, dtype=dtype)[:, 1]

    width = depth // 2 if packed else depth
    k_cache, v_cache = pool(kv_heads, width, size), pool(kv_heads, size, width)
    k_scale, v_scale = (
        (pool(kv_heads, *groups, size, dtype=torch.float16) for _ in range(2)) if scaled else (None, None)
    )
    tables = torch.full((len(work), max(needed) + 1), -1, dtype=torch.int32)
    used = 0
    for row, (sequence, _, end) in enumerate(work):
        for i in range(needed[row]):
            block = int(order[used])
            used += 1
            tables[row, i] = block
            here = slice(i * size, min(end, (i + 1) * size))
            count = here.stop - here.start
            k, v = sequence.k[here].permute(1, 2, 0), sequence.v[here].permute(1, 0, 2)
            if packed:
                fill = size - count
                k_cache[block] = pack_k(torch.nn.functional.pad(k, (0, fill), value=-8))
                v_cache[block] = pack_v(torch.nn.functional.pad(v, (0, 0, 0, fill), value=-8))
            else:
                k_cache[block, :, :, :count] = k
                v_cache[block, :, :count] = v
            for cache, scale in ((k_scale, sequence.k_scale), (v_scale, sequence.v_scale)):
                if cache is not None:
                    cache[block, ..., :count] = scale[here].permute(1, 2, 0).reshape(cache[block, ..., :count].shape)
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
    head_dim=st.sampled_from([8, 24, 32, 40, 64, 80, 96, 128, 192, 256, 264, 512]),
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


@settings(max_examples=30, deadline=None, derandomize=True)
@given(shape=shapes, mask=masks, batch=st.lists(st.tuples(lengths, st.integers(1, 90)), min_size=1, max_size=3))
def test_matches_float64(shape: Shape, mask: Mask, batch: list[tuple[int, int]]) -> None:
    products = shape.heads * shape.head_dim * sum(min(last, length) * length for length, last in batch)
    assume(products < 3e7)  # tests/simt takes ten seconds for 1e8, and what takes other paths is below
    sequences = [make_sequence(shape, length, seed) for seed, (length, _) in enumerate(batch)]
    work = [(s, max(0, length - last), length) for s, (length, last) in zip(sequences, batch, strict=True)]
    tolerance = max(TOLERANCE[shape.dtype], WORDS if shape.cache in INTEGERS else 0)
    for out, (sequence, begin, _) in zip(attend(shape, mask, work), work, strict=True):
        torch.testing.assert_close(
            out.double(), reference(shape, mask, sequence, begin), rtol=tolerance, atol=tolerance
        )


VARIANTS = [
    (Shape(), Mask()),
    (Shape(heads=4, kv_heads=4, head_dim=40, block_size=8, dtype=torch.bfloat16), Mask(window=100, sinks=True)),
    (Shape(heads=16, kv_heads=2, head_dim=128, block_size=32, cache=torch.bfloat16), Mask(soft_cap=20.0)),
    (Shape(heads=9, kv_heads=3, block_size=64, cache=torch.int8), Mask(window=513)),
    (Shape(heads=4, kv_heads=1, head_dim=512, dtype=torch.bfloat16, cache=torch.bfloat16), Mask()),
]
variants = pytest.mark.parametrize(("shape", "mask"), VARIANTS)


@variants
@settings(max_examples=4, deadline=None, derandomize=True)
@given(
    batch=st.lists(st.tuples(st.sampled_from([1, 64, 511, 600]), st.integers(1, 60)), min_size=2, max_size=5),
    data=st.data(),
)
def test_a_sequence_is_the_same_alone_and_in_any_batch(
    shape: Shape, mask: Mask, batch: list[tuple[int, int]], data: st.DataObject
) -> None:
    work = [
        (make_sequence(shape, length, seed), max(0, length - last), length) for seed, (length, last) in enumerate(batch)
    ]
    alone = [attend(shape, mask, [one])[0] for one in work]
    order = data.draw(st.permutations(range(len(work))))
    together = attend(shape, mask, [work[i] for i in order], seed=1)
    for i, out in zip(order, together, strict=True):
        assert torch.equal(out, alone[i])


@variants
def test_every_token_decoded_is_the_token_prefilled(shape: Shape, mask: Mask) -> None:
    sequence = make_sequence(shape, 70, seed=0)
    (prefilled,) = attend(shape, mask, [(sequence, 0, 70)])
    decoded = attend(shape, mask, [(sequence, i, i + 1) for i in range(70)])
    assert torch.equal(torch.cat(decoded), prefilled)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    shape=shapes,
    cache=st.sampled_from(INTEGERS),
    mask=masks,
    length=st.sampled_from([40, 90, 513, 700]),
    rows=st.integers(2, 40),
)
def test_rows_of_an_integer_cache_are_the_same_together_and_alone(
    shape: Shape, cache: torch.dtype, mask: Mask, length: int, rows: int
) -> None:
    """Many rows may be multiplied by other instructions than one."""
    shape = replace(shape, cache=cache)
    sequence = make_sequence(shape, length, seed=0)
    (together,) = attend(shape, mask, [(sequence, length - rows, length)])
    for row in (0, rows // 2, rows - 1):
        end = length - rows + row + 1
        (alone,) = attend(shape, mask, [(sequence, end - 1, end)])
        assert torch.equal(alone[0], together[row])


@variants
@pytest.mark.parametrize("length", [511, 512, 513, 1025, 2000])
def test_chunks_and_decode_are_the_prefill_across_splits(shape: Shape, mask: Mask, length: int) -> None:
    sequence = make_sequence(shape, length, seed=0)
    (prefilled,) = attend(shape, mask, [(sequence, 0, length)])
    edges = [0, 100, SPLIT - 2, SPLIT + 1, 2 * SPLIT, length]
    chunks = [(begin, min(end, length)) for begin, end in itertools.pairwise(edges) if begin < length]
    decodes = [(i - 1, i) for i in (1, SPLIT, SPLIT + 1, 2 * SPLIT + 1, length) if i <= length]
    for begin, end in chunks + decodes:
        (part,) = attend(shape, mask, [(sequence, begin, end)])
        assert torch.equal(part, prefilled[begin:end]), f"rows {begin} to {end}"


@variants
def test_threads_do_not_show(shape: Shape, mask: Mask) -> None:
    # One long decode is spread over the threads by its splits; beside short ones it is not.
    long, short = make_sequence(shape, 2600, seed=0), make_sequence(shape, 90, seed=1)
    batches = [
        [(long, 2599, 2600)],
        [(long, 2570, 2600)],
        [(short, 0, 90), (long, 2599, 2600), *[(short, i, i + 1) for i in range(30)]],
    ]
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            results.append([torch.cat(attend(shape, mask, batch)) for batch in batches])
    finally:
        torch.set_num_threads(before)
    for result in results[1:]:
        assert all(torch.equal(one, other) for one, other in zip(results[0], result, strict=True))


@functools.cache
def attended_by(kernels: Any, shape: Shape, mask: Mask, begin: int, end: int) -> Tensor:
    """By attend(), whose kernels are `ops`."""
    assert kernels is ops
    (out,) = attend(shape, mask, [(make_sequence(shape, end, seed=0), begin, end)])
    return out


@pytest.mark.parametrize(("part", "value"), [("k", math.nan), ("v", math.nan), ("v", math.inf)])
@pytest.mark.parametrize("cache", [torch.float32, torch.float16, torch.bfloat16, torch.int8])
@pytest.mark.parametrize("mask", [Mask(), Mask(window=20)])
def test_what_is_not_finite_reaches_only_rows_that_see_it(
    mask: Mask, cache: torch.dtype, part: str, value: float
) -> None:
    scaled = cache in INTEGERS  # whose scales alone can be other than finite
    shape = Shape(head_dim=32, cache=cache, dtype=torch.float32 if scaled else cache)
    begin, bad, end = 500, 531, 580  # words are weighed by twos or fours, of which the first may not see this one
    clean = attended_by(ops, shape, mask, begin, end)
    sequence = make_sequence(shape, end, seed=0)
    getattr(sequence, f"{part}_scale" if scaled else part)[bad] = value
    (dirty,) = attend(shape, mask, [(sequence, begin, end)])
    before, last = bad - begin, bad - begin + mask.window if mask.window else end - begin
    assert torch.equal(dirty[:before], clean[:before])
    assert not dirty[before:last].isfinite().any()
    assert torch.equal(dirty[last:], clean[last:])


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("cache", [torch.float32, torch.int8])
def test_a_query_that_is_not_finite_spoils_its_own_head_alone(cache: torch.dtype, value: float) -> None:
    shape, sequence = Shape(cache=cache), make_sequence(Shape(cache=cache), 40, seed=0)
    (clean,) = attend(shape, Mask(), [(sequence, 20, 40)])
    sequence.q[30, 2, 5] = value
    (dirty,) = attend(shape, Mask(), [(sequence, 20, 40)])
    assert dirty[10, 2].isnan().all()
    dirty[10, 2] = clean[10, 2]
    assert torch.equal(dirty, clean)


@pytest.mark.parametrize(("cache", "code"), [(torch.int8, 127), (torch.int8, -127)])
@pytest.mark.parametrize("length", [SPLIT, SPLIT + 1])
def test_the_largest_codes_do_not_overflow(length: int, cache: torch.dtype, code: int) -> None:
    shape = Shape(heads=2, kv_heads=1, head_dim=256, cache=cache)
    sequence = make_sequence(shape, length, seed=0)
    for codes in (sequence.k, sequence.v):
        codes.fill_(code)
    sequence.k_scale.fill_(1e-3)
    sequence.v_scale.fill_(1.0)
    sequence.q.fill_(3.0)
    (out,) = attend(shape, Mask(), [(sequence, length - 1, length)])
    torch.testing.assert_close(out, torch.full_like(out, code), rtol=1e-5, atol=0)


def arguments() -> dict[str, Any]:
    return {
        "q": torch.zeros(3, 4 * 32),
        "k_cache": torch.zeros(5, 2, 32, 16),
        "v_cache": torch.zeros(5, 2, 16, 32),
        "block_tables": torch.tensor([[0, 1], [2, 3]], dtype=torch.int32),
        "query_start": torch.tensor([0, 1, 3], dtype=torch.int32),
        "seq_lens": torch.tensor([20, 2], dtype=torch.int32),
        "scale": 0.2,
    }


@pytest.mark.host
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"q": torch.zeros(3, 100)}, "q: expected a width that is a multiple of kv_heads"),
        ({"q": torch.zeros(3, 128, dtype=torch.int8)}, "q: expected float32, float16 or bfloat16, got int8"),
        ({"k_cache": torch.zeros(5, 2, 36, 16)}, "v_cache: expected shape"),
        ({"v_cache": torch.zeros(5, 2, 16, 32).half()}, "v_cache: expected the dtype of k_cache"),
        (
            {"k_cache": torch.zeros(5, 2, 32, 12), "v_cache": torch.zeros(5, 2, 12, 32)},
            "k_cache: expected a block size",
        ),
        ({"k_cache": torch.zeros(5, 2, 4, 16), "v_cache": torch.zeros(5, 2, 16, 4)}, "k_cache: expected a head dim"),
        ({"k_scale": torch.ones(5, 2, 16)}, "k_scale, v_scale: expected none"),
        (
            {"block_tables": torch.tensor([[0, 5], [2, 3]], dtype=torch.int32)},
            r"block_tables: expected blocks in \[0, 5",
        ),
        ({"block_tables": torch.tensor([[0], [2]], dtype=torch.int32)}, "block_tables: expected at least 2 columns"),
        ({"query_start": torch.tensor([0, 2, 1], dtype=torch.int32)}, "query_start: expected to begin with 0"),
        ({"query_start": torch.tensor([0, 1, 3])}, "query_start: expected int32, got int64"),
        ({"seq_lens": torch.tensor([20, 1], dtype=torch.int32)}, "seq_lens: expected at least the 2 queries"),
        ({"window": -1}, "window: expected 0"),
        ({"soft_cap": -1.0}, "soft_cap: expected 0"),
        ({"sinks": torch.zeros(3)}, r"sinks: expected shape \[4\], got \[3\]"),
        ({"out": torch.zeros(3, 64)}, r"out: expected shape \[3, 128\], got \[3, 64\]"),
    ],
)
def test_refuses_bad_arguments(change: dict[str, Any], message: str) -> None:
    with pytest.raises(RuntimeError, match=message):
        ops.paged_attention(**{**arguments(), **change})


@pytest.mark.host
@pytest.mark.parametrize("window", [2**31 - 1, 2**32 + 5, 2**63 - 1])
def test_a_window_longer_than_any_sequence_hides_nothing(window: int) -> None:
    """Counted back from the first query of a tile, before a split's first token, 2^63 - 1 overflowed."""
    work = [(make_sequence(Shape(), 600, seed=0), 5, 600)]
    assert torch.equal(attend(Shape(), Mask(window=window), work)[0], attend(Shape(), Mask(), work)[0])


@pytest.mark.host
def test_an_int8_cache_needs_scales() -> None:
    cache = {name: arguments()[name].to(torch.int8) for name in ("k_cache", "v_cache")}
    with pytest.raises(RuntimeError, match="k_scale, v_scale: expected, since the cache is int8"):
        ops.paged_attention(**{**arguments(), **cache})
    scales = {name: torch.ones(5, 2, 16) for name in ("k_scale", "v_scale")}
    with pytest.raises(RuntimeError, match="k_scale: expected float16, got float32"):
        ops.paged_attention(**{**arguments(), **cache, **scales})


@pytest.mark.host
def test_an_int4_cache_needs_scales_for_its_groups_and_aligned_blocks() -> None:
    def bytes_of(*block: int) -> Tensor:
        return torch.zeros(5, 2, *block, dtype=torch.uint8)

    cache = {**arguments(), "k_cache": bytes_of(16, 16), "v_cache": bytes_of(16, 16)}
    one = torch.ones(5, 2, 1, 16).half()
    assert ops.paged_attention(**cache, k_scale=one, v_scale=one).eq(0).all()
    with pytest.raises(RuntimeError, match=r"v_scale: expected shape \[5, 2, 1, 16\], got \[5, 2, 2, 16\]"):
        ops.paged_attention(**cache, k_scale=one, v_scale=torch.ones(5, 2, 2, 16).half())
    shifted = torch.zeros(5 * 2 * 16 * 16 + 1, dtype=torch.uint8)[1:].view(5, 2, 16, 16)
    with pytest.raises(RuntimeError, match="v_cache: expected int4 blocks aligned to 16 bytes"):
        ops.paged_attention(**{**cache, "v_cache": shifted}, k_scale=one, v_scale=one)


def test_a_sequence_without_queries() -> None:
    shape, mask = Shape(), Mask()
    sequence = make_sequence(shape, 40, seed=0)
    nothing, something = attend(shape, mask, [(sequence, 40, 40), (sequence, 39, 40)])
    assert nothing.shape[0] == 0
    assert torch.equal(something, attend(shape, mask, [(sequence, 39, 40)])[0])
    assert attend(shape, mask, [(sequence, 40, 40)])[0].shape[0] == 0


@pytest.mark.host
def test_opcheck() -> None:
    args = arguments()
    caches = (args["k_cache"], args["v_cache"], None, None, args["block_tables"], args["query_start"], args["seq_lens"])
    torch.library.opcheck(
        torch.ops.pybatch.paged_attention.default, (args["q"], *caches, 0.2, 0, 0.0, None, None, torch.zeros(3, 128))
    )
