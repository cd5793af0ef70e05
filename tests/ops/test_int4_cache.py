"""int4 KV caches: attention against float64 and bit against bit, and what rope_kv_write puts into them."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from backends import suite
from hypothesis import given, settings
from hypothesis import strategies as st
from ops.int4_packing import by_element, groups_of, pack_k, pack_v, unpack_k, unpack_v
from torch import Tensor

from pybatch import ops

INT4 = torch.uint8  # the type of an int4 cache's bytes
attention, writing = suite("test_attention", ops), suite("test_rope_kv_write", ops)
Shape, Mask = attention.Shape, attention.Mask

VARIANTS = [
    (Shape(heads=9, kv_heads=3, cache=INT4), Mask(window=513)),
    (Shape(heads=8, kv_heads=2, head_dim=80, block_size=8, cache=INT4, dtype=torch.bfloat16), Mask(sinks=True)),
]
variants = pytest.mark.parametrize(("shape", "mask"), VARIANTS)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    shape=attention.shapes.map(lambda shape: replace(shape, cache=INT4)),
    mask=attention.masks,
    batch=st.lists(st.tuples(attention.lengths, st.integers(1, 90)), min_size=1, max_size=3),
)
def test_attention_matches_float64(shape: Any, mask: Any, batch: list[tuple[int, int]]) -> None:
    attention.test_matches_float64.hypothesis.inner_test(shape, mask, batch)


@variants
def test_a_sequence_is_the_same_alone_and_in_any_batch(shape: Any, mask: Any) -> None:
    lengths = ((600, 1), (130, 40), (513, 1), (20, 20), (1100, 60))
    work = [
        (attention.make_sequence(shape, length, seed), length - last, length)
        for seed, (length, last) in enumerate(lengths)
    ]
    for item, out in zip(work, attention.attend(shape, mask, work), strict=True):
        assert torch.equal(attention.attend(shape, mask, [item])[0], out)


@variants
def test_every_token_decoded_is_the_token_prefilled(shape: Any, mask: Any) -> None:
    attention.test_every_token_decoded_is_the_token_prefilled(shape, mask)


@variants
@pytest.mark.parametrize("length", [513, 1025])
def test_chunks_and_decode_are_the_prefill_across_splits(shape: Any, mask: Any, length: int) -> None:
    attention.test_chunks_and_decode_are_the_prefill_across_splits(shape, mask, length)


@variants
def test_threads_do_not_show(shape: Any, mask: Any) -> None:
    attention.test_threads_do_not_show(shape, mask)


@pytest.mark.parametrize(("part", "value"), [("k", math.nan), ("v", math.nan), ("v", math.inf)])
@pytest.mark.parametrize("mask", [Mask(), Mask(window=20)])
def test_what_is_not_finite_reaches_only_rows_that_see_it(mask: Any, part: str, value: float) -> None:
    attention.test_what_is_not_finite_reaches_only_rows_that_see_it(mask, INT4, part, value)


def test_a_query_that_is_not_finite_spoils_its_own_head_alone() -> None:
    attention.test_a_query_that_is_not_finite_spoils_its_own_head_alone(INT4, math.nan)


@pytest.mark.parametrize("code", [7, -8])
def test_the_largest_codes_do_not_overflow(code: int) -> None:
    attention.test_the_largest_codes_do_not_overflow(512, INT4, code)


def test_groups_of_values_have_scales_of_their_own() -> None:
    shape = Shape(heads=2, kv_heads=1, head_dim=80, cache=INT4)
    sequence = attention.make_sequence(shape, 40, seed=0)
    sequence.v_scale *= torch.tensor([1.0, 1e-3, -1e3]).half()  # scales may be negative
    (out,) = attention.attend(shape, Mask(), [(sequence, 30, 40)])
    expected = attention.reference(shape, Mask(), sequence, 30)
    for group in groups_of(80):
        largest = expected[..., group].abs().max().item()
        torch.testing.assert_close(out[..., group].double(), expected[..., group], rtol=0, atol=1e-3 * largest)


@pytest.mark.parametrize("part", ["k_scale", "v_scale"])
def test_a_group_that_is_not_finite_spoils_no_other_values(part: str) -> None:
    shape = Shape(heads=2, kv_heads=1, cache=INT4)
    sequence = attention.make_sequence(shape, 40, seed=0)
    getattr(sequence, part)[3, 0, 1] = math.nan
    (out,) = attention.attend(shape, Mask(), [(sequence, 30, 40)])
    assert out[..., 32:].isnan().all()
    assert out[..., :32].isnan().all() == (part == "k_scale")


@pytest.mark.parametrize("head_dim", [8, 24, 32, 40, 80, 128])
def test_packing_loses_no_code(head_dim: int) -> None:
    codes = torch.randint(-8, 8, (3, 2, head_dim, 16), generator=torch.Generator().manual_seed(0))
    assert torch.equal(unpack_k(pack_k(codes)), codes)
    assert torch.equal(unpack_v(pack_v(codes.transpose(-1, -2))), codes.transpose(-1, -2))


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    shape=writing.shapes.map(lambda shape: replace(shape, cache=INT4)),
    tokens=st.integers(1, 40),
    unwritten=st.sets(st.integers(0, 39)),
)
def test_what_is_written_matches_float64(shape: Any, tokens: int, unwritten: set[int]) -> None:
    batch = writing.make_batch(shape, tokens)
    written = torch.tensor([i not in unwritten for i in range(tokens)])
    batch.slots[~written] = -1 - batch.slots[~written]
    cache = writing.Cache.empty(shape, tokens // shape.block_size + 2)
    before = [codes.clone() for codes in cache.codes()]
    writing.write(batch, cache)
    k_in, v_in = batch.split()[1:]
    wanted_k = writing.reference(batch, k_in, writing.norm_weights(shape)[1])
    wanted_v = v_in.unflatten(1, (-1, shape.head_dim)).double()
    rounding = (6 if shape.norm else 2) * writing.EPS[shape.dtype]
    here = batch.slots[written]
    for got, codes, old, wanted, error in zip(
        cache.slots(), cache.codes(), before, (wanted_k, wanted_v), (rounding, 0.0), strict=True
    ):
        for group in groups_of(shape.head_dim):
            x, found = wanted[written][..., group], got[here][..., group]
            largest = x.abs().amax(-1, keepdim=True)
            step = largest / 8
            # Past 7 steps there may be no code. The step itself is rounded, to eleven bits.
            allowed = torch.maximum(step / 2, x.abs() - 7 * step) + step * 2.0**-8 + largest * error + 1e-6
            assert ((found - x).abs() <= allowed).all()
        untouched = torch.ones(len(got), dtype=torch.bool)
        untouched[here] = False
        assert got[untouched].isnan().all()
        assert torch.equal(codes[untouched], old[untouched])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("head_dim", [64, 80])
def test_codes_are_rounded_once_by_the_scale_that_is_kept(head_dim: int, dtype: torch.dtype) -> None:
    shape = writing.Shape(head_dim=head_dim, rotary_dim=head_dim, cache=INT4, dtype=dtype)
    writing.check_rounded_once(shape, -8, 7)


@pytest.mark.parametrize("sign", [1, -1])
def test_the_largest_element_is_kept_exactly_and_all_codes_are_used(sign: int) -> None:
    shape = writing.Shape(heads=1, kv_heads=1, head_dim=16, rotary_dim=0, cache=INT4)
    x = torch.arange(8.0, -8.0, -1.0) * sign
    batch = writing.Batch(shape, x.repeat(1, 3), torch.tensor([0]), torch.tensor([0]))
    cache = writing.Cache.empty(shape, 1)
    writing.write(batch, cache)
    for codes, values in zip(cache.codes(), cache.slots(), strict=True):
        assert codes[0, 0].tolist() == list(range(-8, 8))
        assert torch.equal(values[0, 0], x.double())


def test_a_group_of_zeros_is_zero() -> None:
    shape = writing.Shape(cache=INT4)
    batch = writing.make_batch(shape, 1)
    for x in batch.split()[1:]:
        x[:, 32:64] = 0
    batch.positions[:] = 0
    cache = writing.Cache.empty(shape, 2)
    writing.write(batch, cache)
    for values in cache.slots():
        assert values[batch.slots][..., 0, 32:].eq(0).all()
        assert values[batch.slots][..., 0, :32].ne(0).any()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", [0, 31, 40, 63])
def test_what_is_not_finite_makes_the_scale_of_its_group_nan(place: int, value: float) -> None:
    shape = writing.Shape(rotary_dim=0, cache=INT4)  # a rotation spreads it to another group
    batch = writing.make_batch(shape, 3)
    for x in batch.split()[1:]:
        x[1, place] = value
    cache = writing.Cache.empty(shape, 2)
    writing.write(batch, cache)
    expected = torch.zeros(3, shape.kv_heads, shape.head_dim, dtype=torch.bool)
    expected[1, 0, place // 32 * 32 : place // 32 * 32 + 32] = True
    for scale in cache.scales():
        assert torch.equal(scale[batch.slots].isnan(), expected)


@pytest.mark.parametrize(
    "shape", [writing.Shape(cache=INT4), writing.Shape(head_dim=40, rotary_dim=40, block_size=8, cache=INT4)]
)
def test_a_token_is_written_the_same_alone_in_any_batch_and_on_any_threads(shape: Any) -> None:
    writing.test_a_token_is_the_same_alone_in_any_batch_and_on_any_threads(shape)


SHAPES = [writing.Shape(cache=INT4), writing.Shape(kv_heads=3, head_dim=40, block_size=8, cache=INT4)]


def filled(shape: Any, blocks: int) -> Any:
    """A cache whose every slot holds a random token."""
    shape = replace(shape, rotary_dim=0)
    batch = writing.make_batch(shape, blocks * shape.block_size)
    batch.slots = torch.arange(blocks * shape.block_size)
    cache = writing.Cache.empty(shape, blocks)
    writing.write(batch, cache)
    return cache


@pytest.mark.parametrize("places", [[2, 5, 3], [4, 5, 0], [4, 1, 3]], ids=["apart", "in place", "partly in place"])
@pytest.mark.parametrize("shape", SHAPES)
def test_gathered_tokens_are_those_of_their_heads_bit_for_bit(shape: Any, places: list[int]) -> None:
    cache, size = filled(shape, 6), shape.block_size
    before = [x.clone() for x in (*cache.codes(), *cache.scales())]
    source, destination = torch.tensor([[4, 1, 0], places], dtype=torch.int32)
    kept = 2 * size + 3
    generator = torch.Generator().manual_seed(0)
    indices = torch.stack([torch.randperm(3 * size, generator=generator)[:kept] for _ in range(shape.kv_heads)]).int()
    if 4 in places:
        indices = indices.sort(1).values
    ops.gather_kv(*cache.tensors(), source, indices, destination)

    def slots(table: Tensor, tokens: Tensor) -> Tensor:
        return table[tokens // size].long() * size + tokens % size

    written = slots(destination, torch.arange(kept))
    untouched = torch.ones(6 * size, dtype=torch.bool)
    untouched[written] = False
    for after, old in zip((*cache.codes(), *cache.scales()), before, strict=True):
        for head in range(shape.kv_heads):
            assert torch.equal(after[written, head], old[slots(source, indices[head]), head])
        assert torch.equal(after[untouched], old[untouched])


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("position", [0, 77])
def test_turned_keys_are_those_of_the_later_position(shape: Any, position: int) -> None:
    cache, size, depth = filled(shape, 4), shape.block_size, shape.head_dim
    (k, v), v_codes = cache.slots(), cache.codes()[1]
    ops.rotate_keys(*cache.tensors(), torch.tensor([2]), writing.rotary_table(depth)[[position]])
    batch = writing.Batch(replace(shape, rotary_dim=depth), k, torch.full((len(k),), position), torch.tensor([]))
    wanted, got = writing.reference(batch, k.flatten(1), None), cache.slots()[0]
    here = torch.arange(2 * size, 3 * size)
    for group in groups_of(depth):
        x = wanted[here][..., group]
        step = x.abs().amax(-1, keepdim=True) / 8
        allowed = torch.maximum(step / 2, x.abs() - 7 * step) + step * 2.0**-8 + 1e-6
        assert ((got[here][..., group] - x).abs() <= allowed).all()
    others = torch.ones(len(k), dtype=torch.bool)
    others[here] = False
    assert torch.equal(got[others], k[others])
    assert torch.equal(cache.codes()[1], v_codes)
    assert torch.equal(cache.slots()[1], v)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_attention_of_int4_tokens_is_that_of_their_values_in_float32(shape: Any) -> None:
    """Codes times scales are exact in float32."""
    cache, size = filled(shape, 5), shape.block_size
    k, v = (x.float().unflatten(0, (5, size)) for x in cache.slots())
    plain = (k.permute(0, 2, 3, 1).contiguous(), v.transpose(1, 2).contiguous(), None, None)
    lengths, starts = torch.tensor([4 * size - 3], dtype=torch.int32), torch.tensor([0, 9], dtype=torch.int32)
    q = torch.randn(9, 2 * shape.kv_heads * shape.head_dim, generator=torch.Generator().manual_seed(0))
    table = torch.tensor([[3, 0, 4, 1]], dtype=torch.int32)
    sums = []
    for tensors in (cache.tensors(), plain):
        sums.append(torch.zeros(1, shape.kv_heads, 4 * size))
        rows = {"first": starts[:1], "sources": starts[:1] - 1, "rows": starts[:1]}
        ops.attention_mass(q, *tensors, table, starts, lengths, 0.125, **rows, mass=sums[-1])
    assert sums[0].sum() > 17 * shape.kv_heads
    assert torch.equal(*sums)


@dataclass
class Layer:
    """Random codes and scales of `blocks` blocks, two KV heads in each."""

    tensors: tuple[Tensor, Tensor, Tensor, Tensor]

    @classmethod
    def random(cls, head_dim: int, blocks: int = 5, size: int = 16) -> Layer:
        generator = torch.Generator().manual_seed(0)
        codes = torch.randint(-8, 8, (2, blocks, 2, head_dim, size), generator=generator)
        scales = torch.rand(2, blocks, 2, len(groups_of(head_dim)), size, generator=generator).half() - 0.5
        return cls((pack_k(codes[0]), pack_v(codes[1].transpose(-1, -2)), scales[0], scales[1]))

    def by_token(self) -> tuple[Tensor, Tensor]:
        """Keys and values, [blocks, kv_heads, block_size, head_dim] in float64."""
        k, v, *scales = self.tensors
        k_scale, v_scale = (by_element(scale.double().transpose(-1, -2), 2 * v.shape[-1]) for scale in scales)
        return unpack_k(k).transpose(-1, -2) * k_scale, unpack_v(v) * v_scale


widths = pytest.mark.parametrize("head_dim", [40, 64])


@widths
def test_gathered_tokens_are_as_they_were(head_dim: int) -> None:
    layer, before = Layer.random(head_dim), Layer.random(head_dim).by_token()
    source, destination = torch.tensor([4, 0], dtype=torch.int32), torch.tensor([2, 1], dtype=torch.int32)
    indices = torch.stack([torch.arange(2, 21), torch.arange(31, 12, -1)]).int()
    ops.gather_kv(*layer.tensors, source, indices, destination)
    for now, old in zip(layer.by_token(), before, strict=True):
        for head in range(2):
            wanted = old[source.long(), head].flatten(0, 1)[indices[head].long()]
            assert torch.equal(now[destination.long(), head].flatten(0, 1)[:19], wanted)
            assert torch.equal(now[1, head, 3:], old[1, head, 3:])
        assert torch.equal(now[[0, 3, 4]], old[[0, 3, 4]])


@widths
def test_turned_keys_are_rounded_once(head_dim: int) -> None:
    layer, before = Layer.random(head_dim), Layer.random(head_dim).by_token()
    angles = torch.rand(1, head_dim // 2, generator=torch.Generator().manual_seed(1))
    ops.rotate_keys(*layer.tensors, torch.tensor([3]), torch.cat([angles.cos(), angles.sin()], 1))
    first, second = before[0][3].chunk(2, -1)
    cos, sin = angles.double().cos(), angles.double().sin()
    wanted = torch.cat([first * cos - second * sin, second * cos + first * sin], -1)
    keys, values = layer.by_token()
    for group in groups_of(head_dim):
        x = wanted[..., group]
        step = x.abs().amax(-1, keepdim=True) / 8
        allowed = torch.maximum(step / 2, x.abs() - 7 * step) + step * 2.0**-7
        assert ((keys[3, ..., group] - x).abs() <= allowed).all()
    assert torch.equal(keys[[0, 1, 2, 4]], before[0][[0, 1, 2, 4]])
    assert torch.equal(values, before[1])


@widths
def test_attention_mass_is_of_the_keys_that_the_codes_stand_for(head_dim: int) -> None:
    layer, length = Layer.random(head_dim), 70
    table = torch.tensor([[3, 1, 0, 4, 2]], dtype=torch.int32)
    q = torch.randn(1, 2 * 3 * head_dim, generator=torch.Generator().manual_seed(2))
    mass = torch.full((1, 2, 80), math.nan)
    one = {name: torch.tensor([x], dtype=torch.int32) for name, x in (("first", 0), ("sources", -1), ("rows", 0))}
    starts, lengths = torch.tensor([0, 1], dtype=torch.int32), torch.tensor([length], dtype=torch.int32)
    ops.attention_mass(q, *layer.tensors, table, starts, lengths, 0.2, **one, mass=mass)
    keys = layer.by_token()[0][table[0].long()].transpose(0, 1).flatten(1, 2)[:, :length]
    logits = torch.einsum("hgd,htd->hgt", q.double().view(2, 3, head_dim), keys) * 0.2
    torch.testing.assert_close(mass[0, :, :length].double(), logits.softmax(-1).sum(1), rtol=1e-4, atol=1e-6)


@pytest.mark.host
def test_refuses_scales_of_other_shapes_and_blocks_that_are_not_aligned() -> None:
    def bytes_of(*block: int) -> Tensor:
        return torch.zeros(5, 2, *block, dtype=torch.uint8)

    cache = {**attention.arguments(), "k_cache": bytes_of(16, 16), "v_cache": bytes_of(16, 16)}
    one = torch.ones(5, 2, 1, 16).half()
    assert ops.paged_attention(**cache, k_scale=one, v_scale=one).eq(0).all()
    with pytest.raises(RuntimeError, match=r"v_scale: expected shape \[5, 2, 1, 16\], got \[5, 2, 2, 16\]"):
        ops.paged_attention(**cache, k_scale=one, v_scale=torch.ones(5, 2, 2, 16).half())
    with pytest.raises(RuntimeError, match="k_scale, v_scale: expected, since the cache is uint8"):
        ops.paged_attention(**cache)
    shifted = torch.zeros(5 * 2 * 16 * 16 + 1, dtype=torch.uint8)[1:].view(5, 2, 16, 16)
    with pytest.raises(RuntimeError, match="v_cache: expected int4 blocks aligned to 16 bytes"):
        ops.paged_attention(**{**cache, "v_cache": shifted}, k_scale=one, v_scale=one)
