"""rope_kv_write against the rotation written out in float64 and against transformers, and its bits per token."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ops.int4_packing import by_element, groups_of, unpack_k, unpack_v
from torch import Tensor

from pybatch import ops

MAX_POSITION = 600
INT4 = torch.uint8  # the type of an int4 cache's bytes
EPS = {torch.float32: 2**-24, torch.float16: 2**-11, torch.bfloat16: 2**-8}


@dataclass(frozen=True)
class Shape:
    heads: int = 6
    kv_heads: int = 2
    head_dim: int = 64
    rotary_dim: int = 64
    block_size: int = 16
    cache: torch.dtype = torch.float32
    dtype: torch.dtype = torch.float32
    interleaved: bool = False
    norm: bool = False
    norm_of_heads: bool = False  # with weights of its own for each
    layer_norm: bool = False
    norm_last: bool = False
    scaled: bool = False  # queries, by position


@dataclass
class Batch:
    """Rows of a fused projection, so that q, k and v are slices with a wider stride."""

    shape: Shape
    qkv: Tensor  # [tokens, (heads + 2 * kv_heads) * D]
    positions: Tensor
    slots: Tensor

    def rows(self, index: Any) -> Batch:
        return Batch(self.shape, self.qkv[index].clone(), self.positions[index], self.slots[index])

    def split(self) -> tuple[Tensor, Tensor, Tensor]:
        depth, kv_heads = self.shape.head_dim, self.shape.kv_heads
        q, k, v = self.qkv.split([self.shape.heads * depth, kv_heads * depth, kv_heads * depth], 1)
        return q, k, v


@functools.cache
def rotary_table(rotary_dim: int) -> Tensor:
    frequencies = 10000.0 ** (-torch.arange(0, rotary_dim, 2).double() / rotary_dim)
    angles = torch.outer(torch.arange(MAX_POSITION).double(), frequencies)
    return torch.cat([angles.cos(), angles.sin()], 1).float()


def norm_weights(shape: Shape) -> tuple[Tensor, Tensor] | tuple[None, None]:
    if not shape.norm:
        return None, None
    weight = torch.linspace(0.5, 2.0, shape.head_dim).to(shape.dtype)
    if not shape.norm_of_heads:
        return weight, weight.flip(0).contiguous()
    heads = [(1 + torch.arange(count)[:, None] / 8).to(shape.dtype) for count in (shape.heads, shape.kv_heads)]
    return weight * heads[0], weight.flip(0) * heads[1]


def query_scale(shape: Shape) -> Tensor | None:
    return 1 + torch.arange(MAX_POSITION) / 100 if shape.scaled else None


def make_batch(shape: Shape, tokens: int, seed: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    width = (shape.heads + 2 * shape.kv_heads) * shape.head_dim
    blocks = -(-tokens // shape.block_size) + 1
    return Batch(
        shape,
        torch.randn(tokens, width, generator=generator).to(shape.dtype),
        torch.randint(MAX_POSITION, (tokens,), generator=generator),
        torch.randperm(blocks * shape.block_size, generator=generator)[:tokens],
    )


@dataclass
class Cache:
    k: Tensor
    v: Tensor
    k_scale: Tensor | None
    v_scale: Tensor | None

    @staticmethod
    def empty(shape: Shape, blocks: int) -> Cache:
        def full(*block: int, dtype: torch.dtype = shape.cache) -> Tensor:
            # Blocks lie apart, as in a pool whose blocks hold all layers.
            filler = {torch.int8: -128, INT4: 0x88}.get(dtype, math.nan)
            return torch.full((blocks, 2, shape.kv_heads, *block), filler, dtype=dtype)[:, 1]

        width, size, groups = shape.head_dim, shape.block_size, []
        if shape.cache == INT4:
            width, groups = width // 2, [len(groups_of(width))]
        scales = [full(*groups, size, dtype=torch.float16) if shape.cache.itemsize == 1 else None for _ in range(2)]
        return Cache(full(width, size), full(size, width), *scales)

    def tensors(self) -> list[Tensor]:
        return [t for t in (self.k, self.v, self.k_scale, self.v_scale) if t is not None]

    def slots(self) -> tuple[Tensor, Tensor]:
        """K and V by slot, [slots, kv_heads, D], codes with their scales applied."""
        k, v = (codes.double() for codes in self.codes())
        if self.k_scale is not None and self.v_scale is not None:
            k_scale, v_scale = self.scales()
            return k * k_scale.double(), v * v_scale.double()
        return k, v

    def codes(self) -> tuple[Tensor, Tensor]:
        """What is in K and V by slot, [slots, kv_heads, D]."""
        k, v = (unpack_k(self.k), unpack_v(self.v)) if self.k.dtype == INT4 else (self.k, self.v)
        return k.permute(0, 3, 1, 2).flatten(0, 1), v.transpose(1, 2).flatten(0, 1)

    def scales(self) -> tuple[Tensor, Tensor]:
        """The scale of each of these, or of all of a head, [slots, kv_heads, D or 1]."""
        assert self.k_scale is not None
        assert self.v_scale is not None
        blocks, heads, *_, size = self.k_scale.shape
        k, v = (s.view(blocks, heads, -1, size).permute(0, 3, 1, 2).flatten(0, 1) for s in (self.k_scale, self.v_scale))
        return (
            (by_element(k, 2 * self.k.shape[2]), by_element(v, 2 * self.k.shape[2])) if self.k.dtype == INT4 else (k, v)
        )


def write(batch: Batch, cache: Cache, **shift: Tensor) -> Tensor:
    """Runs the op on a copy of the batch; returns the rotated q, [tokens, heads, D]."""
    shape = batch.shape
    q, k, v = batch.rows(slice(None)).split()
    q_norm, k_norm = norm_weights(shape)
    ops.rope_kv_write(
        q,
        k,
        v,
        batch.positions,
        batch.slots,
        rotary_table(shape.rotary_dim),
        *(cache.k, cache.v, cache.k_scale, cache.v_scale),
        q_norm=q_norm,
        k_norm=k_norm,
        layer_norm=shape.layer_norm,
        norm_last=shape.norm_last,
        query_scale=query_scale(shape),
        interleaved=shape.interleaved,
        **shift,
    )
    return q.unflatten(1, (shape.heads, shape.head_dim)).clone()


def reference(batch: Batch, x: Tensor, weight: Tensor | None) -> Tensor:
    """Heads of x [tokens, n * D] normed and rotated, [tokens, n, D], in float64."""
    shape, half = batch.shape, batch.shape.rotary_dim // 2

    def norm(x: Tensor) -> Tensor:
        if weight is None:
            return x
        if shape.layer_norm:
            x = x - x.mean(-1, keepdim=True)
        return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * weight.double()

    x = x.unflatten(1, (-1, shape.head_dim)).double()
    if not shape.norm_last:
        x = norm(x)
    cos, sin = rotary_table(shape.rotary_dim).double()[batch.positions][:, None].split(half, -1)
    first, second = (
        (slice(0, 2 * half, 2), slice(1, 2 * half, 2)) if shape.interleaved else (slice(half), slice(half, 2 * half))
    )
    out = x.clone()
    out[..., first] = x[..., first] * cos - x[..., second] * sin
    out[..., second] = x[..., second] * cos + x[..., first] * sin
    return norm(out) if shape.norm_last else out


shapes = st.builds(
    lambda rotary, head_dim, **rest: Shape(head_dim=head_dim, rotary_dim=head_dim // rotary // 2 * 2, **rest),
    rotary=st.sampled_from([1, 1, 2, 4]),
    heads=st.sampled_from([1, 3, 8]),
    kv_heads=st.sampled_from([1, 3]),
    head_dim=st.sampled_from([8, 24, 32, 64, 80, 128, 256, 512]),
    block_size=st.sampled_from([8, 16, 32, 64]),
    cache=st.sampled_from([torch.float32, torch.float16, torch.bfloat16, torch.int8]),
    dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
    interleaved=st.booleans(),
    norm=st.booleans(),
    norm_of_heads=st.booleans(),
    layer_norm=st.booleans(),
    norm_last=st.booleans(),
    scaled=st.booleans(),
)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(shape=shapes, tokens=st.integers(1, 40), unwritten=st.sets(st.integers(0, 39)))
def test_matches_float64(shape: Shape, tokens: int, unwritten: set[int]) -> None:
    batch = make_batch(shape, tokens)
    written = torch.tensor([i not in unwritten for i in range(tokens)])
    batch.slots[~written] = -1 - batch.slots[~written]
    cache = Cache.empty(shape, tokens // shape.block_size + 2)
    q = write(batch, cache)

    q_norm, k_norm = norm_weights(shape)
    q_in, k_in, v_in = batch.split()
    # One rounding of the result, and two within the norm; a rotation mixes two elements.
    rounding = (6 if shape.norm else 2) * EPS[shape.dtype]
    wanted_q, wanted_k = reference(batch, q_in, q_norm), reference(batch, k_in, k_norm)
    if shape.scaled:
        wanted_q *= query_scale(shape)[batch.positions, None, None].double()
    torch.testing.assert_close(q.double(), wanted_q, rtol=rounding, atol=rounding * wanted_q.abs().max().item() + 1e-6)

    wanted_v = v_in.unflatten(1, (-1, shape.head_dim)).double()
    for got, wanted, error in zip(cache.slots(), (wanted_k, wanted_v), (rounding, 0.0), strict=True):
        largest = wanted.abs().amax(-1, keepdim=True)
        step = largest / 127 / 2 * 1.001 if shape.cache == torch.int8 else largest * EPS[shape.cache]
        here = batch.slots[written]
        assert ((got[here] - wanted[written]).abs() <= (step + largest * error + 1e-6)[written]).all()
        untouched = torch.ones(len(got), dtype=torch.bool)
        untouched[here] = False
        assert got[untouched].isnan().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_int8_is_rounded_once_by_the_scale_that_is_kept(dtype: torch.dtype) -> None:
    check_rounded_once(Shape(cache=torch.int8, dtype=dtype), -127, 127)


def check_rounded_once(shape: Shape, least: int, most: int) -> None:
    batch = make_batch(shape, 50)
    batch.positions[:] = 0  # the rotation by nothing
    batch.split()[2][7] *= 1e3
    cache = Cache.empty(shape, 6)
    write(batch, cache)
    for x, codes, scale in zip(batch.split()[1:], cache.codes(), cache.scales(), strict=True):
        exact = x.unflatten(1, (shape.kv_heads, -1)).double() / scale[batch.slots].double()
        near = ((exact % 1) - 0.5).abs() < 1e-5  # where the division's own rounding decides
        assert near.float().mean() < 0.01
        assert torch.equal(codes[batch.slots][~near], exact.round().clamp(least, most)[~near].to(codes.dtype))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", [0, 5, 40, 63])
def test_what_is_not_finite_makes_the_int8_scale_nan(place: int, value: float) -> None:
    shape = Shape(cache=torch.int8)
    batch = make_batch(shape, 3)
    batch.positions[:] = 0
    for x in batch.split()[1:]:
        x[1, place] = value
    cache = Cache.empty(shape, 2)
    write(batch, cache)
    for scale in cache.scales():
        assert scale[batch.slots].isnan().nonzero().tolist() == [[1, 0, 0]]


def test_is_what_transformers_computes() -> None:
    from transformers.models.llama import modeling_llama as modeling

    shape = Shape()
    batch = make_batch(shape, 50)
    cache = Cache.empty(shape, 5)
    q = write(batch, cache)
    heads = [x.unflatten(1, (-1, shape.head_dim)).transpose(0, 1)[None] for x in batch.split()]
    table = rotary_table(shape.rotary_dim)[batch.positions]
    cos, sin = (x.repeat(1, 2)[None] for x in table.split(shape.rotary_dim // 2, 1))
    wanted_q, wanted_k = modeling.apply_rotary_pos_emb(heads[0], heads[1], cos, sin)
    torch.testing.assert_close(q, wanted_q[0].transpose(0, 1), rtol=1e-6, atol=1e-6)
    k, v = cache.slots()
    torch.testing.assert_close(k[batch.slots].float(), wanted_k[0].transpose(0, 1), rtol=1e-6, atol=1e-6)
    assert torch.equal(v[batch.slots].float(), heads[2][0].transpose(0, 1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_head_norm_rounds_as_transformers_does(dtype: torch.dtype) -> None:
    from transformers.models.qwen3 import modeling_qwen3 as modeling

    shape = Shape(dtype=dtype, cache=dtype, norm=True)
    batch = make_batch(shape, 50)
    batch.positions[:] = 0  # the rotation by nothing
    q = write(batch, Cache.empty(shape, 5))
    norm = modeling.Qwen3RMSNorm(shape.head_dim, eps=1e-6).to(dtype)
    with torch.no_grad():
        norm.weight.copy_(norm_weights(shape)[0])
        wanted = norm(batch.split()[0].unflatten(1, (-1, shape.head_dim)))
    torch.testing.assert_close(q, wanted, rtol=max(1e-6, 2 * EPS[dtype]), atol=0)


@pytest.mark.parametrize("value", [0.5, 1.5, 2.5, -0.5, -1.5, 126.5])
def test_int8_rounds_half_to_even(value: float) -> None:
    shape = Shape(heads=1, kv_heads=1, head_dim=8, rotary_dim=8, cache=torch.int8)
    batch = Batch(shape, torch.zeros(1, 24), torch.tensor([0]), torch.tensor([0]))
    batch.split()[1][0, :2] = torch.tensor([127.0, value])  # the scale is exactly 1
    batch.split()[2][0, :2] = torch.tensor([-127.0, value])
    cache = Cache.empty(shape, 1)
    write(batch, cache)
    assert cache.k_scale is not None
    assert cache.k_scale[0, 0, 0] == 1
    assert cache.k[0, 0, :2, 0].tolist() == [127, round(value)]
    assert cache.v[0, 0, 0, :2].tolist() == [-127, round(value)]


def test_int8_of_a_zero_head_is_zero() -> None:
    shape = Shape(cache=torch.int8)
    batch = make_batch(shape, 1)
    batch.qkv.zero_()
    cache = Cache.empty(shape, 2)
    write(batch, cache)
    k, v = cache.slots()
    assert k[batch.slots].eq(0).all()
    assert v[batch.slots].eq(0).all()


VARIANTS = [
    Shape(),
    Shape(head_dim=80, rotary_dim=20, block_size=8, dtype=torch.bfloat16, cache=torch.bfloat16, norm=True),
    Shape(cache=torch.int8, interleaved=True),
    Shape(head_dim=24, rotary_dim=8, norm=True, norm_of_heads=True, layer_norm=True, norm_last=True, scaled=True),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_values_have_the_norm_of_their_heads(dtype: torch.dtype) -> None:
    shape = Shape(dtype=dtype, cache=dtype, norm=True)
    batch = make_batch(shape, 30)
    weight, cache = norm_weights(shape)[1], Cache.empty(shape, 40)
    write(batch, cache, v_norm=weight)
    heads = batch.split()[2].reshape(-1, shape.head_dim)
    wanted = heads.double() / (heads.double().square().mean(-1, keepdim=True) + 1e-6).sqrt() * weight.double()
    found = cache.slots()[1][batch.slots].flatten(0, 1).double()
    torch.testing.assert_close(found, wanted, rtol=max(1e-6, 2 * EPS[dtype]), atol=1e-6)


@pytest.mark.parametrize("shape", VARIANTS)
def test_queries_alone_have_their_bits_and_nothing_is_written(shape: Shape) -> None:
    batch = make_batch(shape, 30)
    with_keys = write(batch, Cache.empty(shape, 40))
    cache = Cache.empty(shape, 40)
    before = [tensor.clone() for tensor in (cache.k, cache.v)]
    q = batch.rows(slice(None)).split()[0]
    ops.rope_kv_write(
        *(q, None, None, batch.positions, None, rotary_table(shape.rotary_dim)),
        *(cache.k, cache.v, cache.k_scale, cache.v_scale),
        q_norm=norm_weights(shape)[0],
        layer_norm=shape.layer_norm,
        norm_last=shape.norm_last,
        query_scale=query_scale(shape),
        interleaved=shape.interleaved,
    )
    assert torch.equal(q.unflatten(1, (shape.heads, -1)), with_keys)
    for tensor, old in zip((cache.k, cache.v), before, strict=True):
        assert torch.equal(tensor.view(torch.uint8), old.view(torch.uint8))


@pytest.mark.parametrize("shape", VARIANTS)
def test_a_token_is_the_same_alone_in_any_batch_and_on_any_threads(shape: Shape) -> None:
    tokens = 120
    batch = make_batch(shape, tokens)
    batch.slots[5] = -1
    blocks = tokens // shape.block_size + 2
    whole, one_by_one, shuffled = (Cache.empty(shape, blocks) for _ in range(3))
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        q = write(batch, whole)
        torch.set_num_threads(1)
        alone = torch.cat([write(batch.rows(slice(i, i + 1)), one_by_one) for i in range(tokens)])
        order = torch.randperm(tokens, generator=torch.Generator().manual_seed(0))
        mixed = write(batch.rows(order), shuffled)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(alone, q)
    assert torch.equal(mixed, q[order])
    for other in (one_by_one, shuffled):
        for mine, theirs in zip(whole.tensors(), other.tensors(), strict=True):
            assert torch.equal(mine.nan_to_num(7), theirs.nan_to_num(7))


def arguments() -> dict[str, Any]:
    return {
        "q": torch.zeros(3, 4 * 32),
        "k": torch.zeros(3, 2 * 32),
        "v": torch.zeros(3, 2 * 32),
        "positions": torch.tensor([0, 1, 9]),
        "slots": torch.tensor([0, 79, -1]),
        "rotary": torch.zeros(10, 32),
        "k_cache": torch.zeros(5, 2, 32, 16),
        "v_cache": torch.zeros(5, 2, 16, 32),
    }


@pytest.mark.host
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"q": torch.zeros(3, 100)}, "q: expected a width that is a multiple of the cache's head dimension 32"),
        ({"k": torch.zeros(3, 32)}, r"k: expected shape \[3, 64\], got \[3, 32\]"),
        ({"v": torch.zeros(2, 64)}, r"v: expected shape \[3, 64\], got \[2, 64\]"),
        ({"v": torch.zeros(3, 64).half()}, "v: expected the dtype of q"),
        ({"positions": torch.tensor([0, 1, 10])}, r"positions: expected ids in \[0, 10\), got 10 at 2"),
        ({"positions": torch.tensor([0, 1])}, r"positions: expected shape \[3\]"),
        ({"slots": torch.tensor([0, 80, -1])}, "slots: expected below 80, got 80 at 1"),
        ({"rotary": torch.zeros(10, 34)}, "rotary: expected an even width of at most the head dimension 32, got 34"),
        ({"rotary": torch.zeros(10, 31)}, "rotary: expected an even width"),
        ({"q_norm": torch.ones(16)}, r"q_norm: expected shape \[32\]"),
        ({"q_norm": torch.ones(2, 32)}, r"q_norm: expected shape \[4, 32\], got \[2, 32\]"),
        ({"query_scale": torch.ones(9)}, r"query_scale: expected shape \[10\], got \[9\]"),
        ({"k_norm": torch.ones(32).half()}, "k_norm: expected float32, got float16"),
        ({"v_scale": torch.ones(5, 2, 16)}, "k_scale, v_scale: expected none"),
    ],
)
def test_refuses_bad_arguments(change: dict[str, Any], message: str) -> None:
    with pytest.raises(RuntimeError, match=message):
        ops.rope_kv_write(**{**arguments(), **change})


@pytest.mark.host
def test_opcheck() -> None:
    args = arguments()
    inputs = tuple(args[name] for name in ("q", "k", "v", "positions", "slots", "rotary"))
    torch.library.opcheck(
        torch.ops.pybatch.rope_kv_write.default,
        (
            *inputs,
            None,
            None,
            None,
            1e-6,
            False,
            False,
            None,
            False,
            args["k_cache"],
            args["v_cache"],
            None,
            None,
            None,
            None,
        ),
    )


@pytest.mark.parametrize("cache", [torch.float32, torch.int8, INT4], ids=str)
def test_keys_are_kept_as_they_are_shifted(cache: torch.dtype) -> None:
    """The cache has what it has of rotated keys that are divided and moved before; q is multiplied."""
    shape = Shape(cache=cache, head_dim=40, rotary_dim=24, heads=6, kv_heads=2, block_size=8)
    batch = make_batch(shape, 20)
    half = torch.randint(-2, 3, (2, 12)).float().exp2()
    divisor = torch.cat([half, half, torch.randint(-2, 3, (2, 16)).float().exp2()], 1)
    offset = torch.randn(2, 40)
    found, plain, expected = (Cache.empty(shape, 4) for _ in range(3))
    q = write(batch, found, key_divisor=divisor, key_offset=offset)
    assert torch.equal(q, write(batch, plain) * divisor.repeat_interleave(3, 0))
    exact = Cache.empty(replace(shape, cache=torch.float32), 4)
    write(replace(batch, shape=replace(shape, cache=torch.float32)), exact)
    moved = batch.rows(slice(None))
    _, k, _ = moved.split()
    k.copy_((exact.slots()[0][batch.slots].float() / divisor - offset).flatten(1))
    # Written without rotation: position 0.
    write(replace(moved, positions=torch.zeros_like(moved.positions)), expected)
    used = batch.slots
    for a, b in zip(found.slots(), expected.slots(), strict=True):
        assert torch.equal(a[used], b[used])
