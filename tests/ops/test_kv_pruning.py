"""rotate_keys, gather_kv and attention_mass against what they are in float64, and the bits of sums of attention."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ops.rows import FLOATS, same_bits, threads
from torch import Tensor

from pybatch import ops

EPS = {torch.float32: 2**-23, torch.float16: 2**-10, torch.bfloat16: 2**-7}


@dataclass(frozen=True)
class Shape:
    kv_heads: int = 2
    head_dim: int = 64
    block_size: int = 16
    cache: torch.dtype = torch.float32


shapes = st.builds(
    Shape,
    kv_heads=st.sampled_from([1, 2, 3]),
    head_dim=st.sampled_from([8, 24, 40, 64, 128, 256]),
    block_size=st.sampled_from([8, 16, 32, 64]),
    cache=st.sampled_from([*FLOATS, torch.int8]),
)


class Cache:
    """A layer's blocks of random keys and values, apart in their pool, with NaN (int8: -128) between them."""

    def __init__(self, shape: Shape, blocks: int, seed: int = 0) -> None:
        self.shape = shape
        random = torch.Generator().manual_seed(seed)

        def pieces(*block: int, dtype: torch.dtype = shape.cache) -> Tensor:
            filler = -128 if dtype == torch.int8 else math.nan
            pool = torch.full((blocks, 3, shape.kv_heads, *block), filler, dtype=dtype)
            x = torch.randn(blocks, shape.kv_heads, *block, generator=random)
            pool[:, 1] = (x * 40).clamp(-127, 127).to(dtype) if dtype == torch.int8 else x.to(dtype)
            return pool[:, 1]

        depth, size = shape.head_dim, shape.block_size
        self.k, self.v = pieces(depth, size), pieces(size, depth)
        self.k_scale = self.v_scale = None
        if shape.cache.itemsize == 1:
            self.k_scale, self.v_scale = (pieces(size, dtype=torch.float16).abs_().div_(50) for _ in range(2))

    @property
    def tensors(self) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        return self.k, self.v, self.k_scale, self.v_scale

    def keys(self) -> Tensor:
        """[blocks, kv_heads, D, block_size] in float64."""
        k = self.k.double()
        return k if self.k_scale is None else k * self.k_scale.double()[:, :, None]


def rotary_rows(positions: list[int], rotary_dim: int) -> Tensor:
    frequencies = 10000.0 ** (-torch.arange(0, rotary_dim, 2).double() / max(rotary_dim, 1))
    angles = torch.outer(torch.tensor(positions).double(), frequencies)
    return torch.cat([angles.cos(), angles.sin()], 1).float()


def turned(keys: Tensor, rotary: Tensor) -> Tensor:
    """Keys [n, kv_heads, D, block_size] by the angles of rotary [n, R], in float64."""
    half = rotary.shape[1] // 2
    cos, sin = rotary.double()[:, None, :, None].split(half, 2)
    out = keys.clone()
    first, second = keys[:, :, :half], keys[:, :, half : 2 * half]
    out[:, :, :half], out[:, :, half : 2 * half] = first * cos - second * sin, second * cos + first * sin
    return out


@settings(max_examples=40, deadline=None, derandomize=True)
@given(shape=shapes, part=st.sampled_from([1, 2, 4]), positions=st.lists(st.integers(0, 9999), max_size=3))
def test_rotate_keys_turns_the_blocks_that_are_named(shape: Shape, part: int, positions: list[int]) -> None:
    cache, untouched = Cache(shape, 6), Cache(shape, 6)
    blocks = torch.tensor([4, 1, 3][: len(positions)], dtype=torch.int64)
    rotary = rotary_rows(positions, shape.head_dim // part // 2 * 2)
    before = cache.keys()
    ops.rotate_keys(*cache.tensors, blocks, rotary)
    wanted, got = turned(before[blocks], rotary), cache.keys()
    if shape.cache == torch.int8:
        assert cache.k_scale is not None
        room = cache.k_scale[blocks].double()[:, :, None] * 0.5001 + 1e-6
        torch.testing.assert_close(
            cache.k_scale[blocks].double(), wanted.abs().amax(2) / 127, rtol=2**-11, atol=2**-25, check_dtype=False
        )
    else:
        size = wanted.abs().amax(2, keepdim=True) + 1 if len(positions) else wanted
        room = EPS[shape.cache] * size
    assert ((got[blocks] - wanted).abs() <= room).all()
    others = [i for i in range(6) if i not in blocks.tolist()]
    for after, at_first in zip(cache.tensors, untouched.tensors, strict=True):
        if after is not None and at_first is not None:
            assert same_bits(after[others], at_first[others])
    assert same_bits(cache.v, untouched.v)


def test_a_key_of_zeros_in_int8_stays_zero() -> None:
    cache = Cache(Shape(cache=torch.int8), 1)
    cache.k[..., 3] = 0
    ops.rotate_keys(*cache.tensors, torch.tensor([0]), rotary_rows([77], 64))
    assert not cache.k[..., 3].any()
    assert cache.k_scale is not None
    assert not cache.k_scale[..., 3].any()


@pytest.mark.parametrize("shifted", [False, True])
def test_a_turned_key_is_that_of_the_later_position(shifted: bool) -> None:
    """Attention depends on the distance alone, so that a sink's key turned by 100 is the key 100 positions later."""
    offset = torch.randn(1, 64) if shifted else None
    table = rotary_rows(list(range(200)), 64)
    k = torch.randn(16, 64, generator=torch.Generator().manual_seed(0))
    early, late = Cache(Shape(kv_heads=1), 1), Cache(Shape(kv_heads=1), 1)
    for cache, start in ((early, 0), (late, 100)):
        positions = torch.arange(start, start + 16)
        ops.rope_kv_write(k.clone(), k, k, positions, torch.arange(16), table, *cache.tensors, key_offset=offset)
    ops.rotate_keys(*early.tensors, torch.tensor([0]), table[100:101], offset)
    torch.testing.assert_close(early.k, late.k, rtol=1e-5, atol=1e-5)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(shape=shapes, data=st.data())
def test_gather_kv_moves_each_heads_tokens(shape: Shape, data: st.DataObject) -> None:
    cache, before = Cache(shape, 7), Cache(shape, 7)
    size = shape.block_size
    source, free = torch.tensor([5, 0, 6], dtype=torch.int32), [4, 1, 2]
    kept = data.draw(st.integers(0, 3 * size))
    in_place = data.draw(st.sets(st.integers(0, 2)))  # the blocks that are of both tables
    blocks = [int(source[i]) if i in in_place else free[i] for i in range(3)]
    destination = torch.tensor(blocks[: -(-kept // size)], dtype=torch.int32)
    seed = data.draw(st.integers(0, 99))
    random = torch.Generator().manual_seed(seed)
    indices = torch.stack([torch.randperm(3 * size, generator=random)[:kept] for _ in range(shape.kv_heads)]).int()
    if in_place:
        indices = indices.sort(1).values
    with threads(1 + seed % 2):
        ops.gather_kv(*cache.tensors, source, indices, destination)

    for head in range(shape.kv_heads):
        from_block, from_place = source[indices[head] // size].long(), indices[head].long() % size
        to_block, to_place = destination[torch.arange(kept) // size].long(), torch.arange(kept) % size
        assert same_bits(cache.k[to_block, head, :, to_place], before.k[from_block, head, :, from_place])
        assert same_bits(cache.v[to_block, head, to_place], before.v[from_block, head, from_place])
        for scale, at_first in ((cache.k_scale, before.k_scale), (cache.v_scale, before.v_scale)):
            if scale is not None and at_first is not None:
                assert same_bits(scale[to_block, head, to_place], at_first[from_block, head, from_place])
    rest = kept % size  # of the last block the rest is not written
    if rest:
        last = destination[-1]
        assert same_bits(cache.k[last, ..., rest:], before.k[last, ..., rest:])
        assert same_bits(cache.v[last, :, rest:], before.v[last, :, rest:])
    others = [i for i in range(7) if i not in destination.tolist()]
    assert same_bits(cache.k[others], before.k[others])
    assert same_bits(cache.v[others], before.v[others])


CAPACITY = 720
Piece = tuple[int, int]


class Observed:
    """Sequences of one cache, whose queries come in pieces."""

    def __init__(self, shape: Shape, group: int, lengths: list[int], seed: int = 0) -> None:
        needed = [-(-length // shape.block_size) for length in lengths]
        self.cache = Cache(shape, sum(needed) + 1, seed)
        self.shape, self.group, self.lengths = shape, group, lengths
        random = torch.Generator().manual_seed(seed + 1)
        order = torch.randperm(sum(needed) + 1, generator=random).int()
        self.tables = torch.full((len(lengths), max(needed)), -1, dtype=torch.int32)
        for row, blocks in enumerate(order[: sum(needed)].split(needed)):
            self.tables[row, : len(blocks)] = blocks
        width = shape.kv_heads * group * shape.head_dim
        self.q = [torch.randn(length, width, generator=random) for length in lengths]
        self.mass = torch.full((2 * len(lengths), 2, shape.kv_heads, CAPACITY), math.nan)[:, 1]
        self.row = [-1] * len(lengths)  # which holds the sums so far

    def observe(self, pieces: dict[int, Piece], first: dict[int, int] | None = None) -> None:
        """One call with tokens [begin, end) of each sequence named; those from first[s] on count, or all."""
        rows = [2 * s + (self.row[s] == 2 * s) for s in pieces]
        starts, counted = [0], []
        for s, (begin, end) in pieces.items():
            counted.append(starts[-1] + (first or {}).get(s, begin) - begin)
            starts.append(starts[-1] + end - begin)
        ops.attention_mass(
            torch.cat([self.q[s][begin:end] for s, (begin, end) in pieces.items()]),
            *self.cache.tensors,
            self.tables[list(pieces)],
            torch.tensor(starts, dtype=torch.int32),
            torch.tensor([end for _, end in pieces.values()], dtype=torch.int32),
            self.shape.head_dim**-0.5,
            first=torch.tensor(counted, dtype=torch.int32),
            sources=torch.tensor([self.row[s] for s in pieces], dtype=torch.int32),
            rows=torch.tensor(rows, dtype=torch.int32),
            mass=self.mass,
        )
        for s, row in zip(pieces, rows, strict=True):
            self.row[s] = row

    def sums(self, s: int) -> Tensor:
        """[kv_heads, length]."""
        return self.mass[self.row[s], :, : self.lengths[s]].clone()

    def expected(self, s: int, first: int = 0) -> Tensor:
        length, heads, depth = self.lengths[s], self.shape.kv_heads, self.shape.head_dim
        blocks = self.tables[s, : -(-length // self.shape.block_size)].long()
        k = self.cache.keys()[blocks].permute(1, 0, 3, 2).flatten(1, 2)[:, :length]
        q = self.q[s].double().unflatten(1, (heads, self.group, depth))
        logits = torch.einsum("qhgd,hkd->hgqk", q, k) * depth**-0.5
        seen = torch.ones(length, length).tril().bool()
        return logits.masked_fill(~seen, -math.inf).softmax(-1)[:, :, first:].sum((1, 2))


@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    shape=shapes,
    group=st.sampled_from([1, 3, 5]),
    lengths=st.lists(st.sampled_from([1, 7, 16, 65, 130, 300]), min_size=1, max_size=3),
    seed=st.integers(0, 99),
)
def test_attention_mass_matches_float64(shape: Shape, group: int, lengths: list[int], seed: int) -> None:
    observed = Observed(shape, group, lengths, seed)
    observed.observe({s: (0, length) for s, length in enumerate(lengths)})
    for s, length in enumerate(lengths):
        torch.testing.assert_close(observed.sums(s).double(), observed.expected(s), rtol=1e-4, atol=1e-6 * length)


@pytest.mark.parametrize("cache", [*FLOATS, torch.int8])
def test_mass_has_the_same_bits_in_any_pieces_and_company(cache: torch.dtype) -> None:
    shape, lengths = Shape(cache=cache), [700, 90]
    whole = Observed(shape, 3, lengths)
    with threads(1):
        whole.observe({0: (0, 700)})
        whole.observe({1: (0, 90)})
    together = Observed(shape, 3, lengths)
    with threads(2):
        together.observe({1: (0, 90), 0: (0, 700)})
    pieces = Observed(shape, 3, lengths)
    pieces.observe({0: (0, 1)})
    pieces.observe({0: (1, 300), 1: (0, 50)})
    pieces.observe({0: (300, 699)})
    pieces.observe({1: (50, 90), 0: (699, 700)})
    for s in range(2):
        assert same_bits(together.sums(s), whole.sums(s))
        assert same_bits(pieces.sums(s), whole.sums(s))


def test_only_the_last_queries_count_where_that_is_asked() -> None:
    shape = Shape(cache=torch.float16)
    late, early = Observed(shape, 2, [200]), Observed(shape, 2, [200])
    late.observe({0: (0, 200)}, first={0: 168})
    early.observe({0: (150, 175)}, first={0: 168})
    early.observe({0: (175, 200)})
    assert same_bits(late.sums(0), early.sums(0))
    torch.testing.assert_close(late.sums(0).double(), late.expected(0, 168), rtol=1e-4, atol=1e-5)


def test_a_sequence_of_which_no_query_counts_is_not_written() -> None:
    observed = Observed(Shape(), 2, [20, 30])
    observed.observe({0: (0, 20), 1: (0, 30)}, first={1: 30})
    assert observed.mass[2:].isnan().all()
    assert not observed.sums(0).isnan().any()


def test_a_call_that_is_repeated_adds_nothing() -> None:
    once, again = Observed(Shape(), 2, [60]), Observed(Shape(), 2, [60])
    for observed in (once, again):
        observed.observe({0: (0, 40)})
    once.observe({0: (40, 60)})
    before = again.row[0]
    again.observe({0: (40, 60)})
    again.row[0] = before  # as if the step had failed behind the op
    again.observe({0: (40, 60)})
    assert same_bits(again.sums(0), once.sums(0))


@pytest.mark.host
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"first": [0, 21]}, "first: expected a row of sequence 1 or the one behind, 4 to 5, got 21"),
        ({"rows": [0, 0]}, "rows: expected each row once, got 0 twice"),
        ({"rows": [0, 9]}, r"rows: expected in \[0, 4\), got 9 at 1"),
        ({"sources": [1, -1]}, "sources: expected rows that are not written, got 1 at 0"),
        ({"sources": [4, -1]}, "sources: expected below 4, got 4 at 0"),
        ({"mass": torch.zeros(4, 2, 17)}, r"mass: expected shape \[\*, 2, a multiple of 16\], got \[4, 2, 17\]"),
        ({"mass": torch.zeros(4, 2, 16)}, "mass: expected room for the 20 tokens of sequence 1, got 16"),
    ],
)
def test_attention_mass_refuses(change: dict[str, list[int] | Tensor], message: str) -> None:
    cache = Cache(Shape(), 3)
    given = {"first": [0, 4], "sources": [-1, -1], "rows": [0, 1], "mass": torch.zeros(4, 2, 32)} | change
    arguments = {
        name: value if isinstance(value, Tensor) else torch.tensor(value, dtype=torch.int32)
        for name, value in given.items()
    }
    tables = torch.tensor([[0, 0], [1, 2]], dtype=torch.int32)
    starts, lengths = torch.tensor([0, 4, 5], dtype=torch.int32), torch.tensor([4, 20], dtype=torch.int32)
    with pytest.raises(RuntimeError, match=f"^{message}"):
        ops.attention_mass(torch.zeros(5, 128), *cache.tensors, tables, starts, lengths, 0.1, **arguments)


@pytest.mark.host
@pytest.mark.parametrize(
    ("source", "indices", "destination", "message"),
    [
        ([0, 3], [0], [1], r"source: expected blocks in \[0, 3\), got 3 at 1"),
        ([0, 1], [0], [1], "destination: expected blocks that are in source at the same place or not, got 1 at 0"),
        ([0, 0], [0], [0], "destination: expected blocks that are in source at the same place or not, got 0 at 0"),
        ([0], [1, 0], [0], "indices: expected none below its place, since blocks of source .*, got 0 at 1"),
        ([0], [*range(16), 1], [1, 1], "destination: expected each block once, got 1 twice"),
        ([0], [16], [1], r"indices: expected tokens in \[0, 16\), got 16 at 0"),
        ([0], [0], [1, 2], r"destination: expected shape \[1\], got \[2\]"),
    ],
)
def test_gather_kv_refuses(source: list[int], indices: list[int], destination: list[int], message: str) -> None:
    cache = Cache(Shape(), 3)
    tables = [torch.tensor(table, dtype=torch.int32) for table in (source, destination)]
    chosen = torch.tensor([indices, indices], dtype=torch.int32)
    with pytest.raises(RuntimeError, match=f"^{message}"):
        ops.gather_kv(*cache.tensors, tables[0], chosen, tables[1])
