"""embedding copies the rows that were asked for, out of every layout of the table."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ops.rows import FLOATS, apart, same_bits, threads
from torch import Tensor

from pybatch import ops

floats = st.sampled_from(FLOATS)


def table_of(vocab: int, width: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(vocab, width, generator=torch.Generator().manual_seed(vocab)).to(dtype)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    data=st.data(),
    vocab=st.integers(1, 50),
    width=st.integers(1, 70),
    dtype=floats,
    out_dtype=floats,
    packed=st.booleans(),
)
def test_float_tables(
    data: st.DataObject, vocab: int, width: int, dtype: torch.dtype, out_dtype: torch.dtype, packed: bool
) -> None:
    ids = torch.tensor(data.draw(st.lists(st.integers(0, vocab - 1), max_size=9)), dtype=torch.int64)
    table = table_of(vocab, width, dtype)
    out = torch.empty(len(ids), width, dtype=out_dtype)
    assert ops.embedding(ids, ops.pack_dense(table) if packed else table, out, vocab) is out
    assert same_bits(out, table[ids].to(out_dtype))
    ops.embedding(ids, ops.pack_dense(table) if packed else table, out, vocab, multiplier=7.3)
    assert torch.equal(out, (table[ids].float() * torch.tensor(7.3)).to(out_dtype))


@settings(max_examples=40, deadline=None, derandomize=True)
@given(data=st.data(), vocab=st.integers(1, 50), width=st.integers(1, 70), out_dtype=floats)
def test_int8_tables(data: st.DataObject, vocab: int, width: int, out_dtype: torch.dtype) -> None:
    ids = torch.tensor(data.draw(st.lists(st.integers(0, vocab - 1), max_size=9)), dtype=torch.int64)
    q, scale = ops.quantize_int8(table_of(vocab, width))
    out = ops.embedding(ids, ops.pack_int8(q), torch.empty(len(ids), width, dtype=out_dtype), vocab, scale)
    assert same_bits(out, (q[ids].float() * scale[ids, None]).to(out_dtype))
    ops.embedding(ids, ops.pack_int8(q), out, vocab, scale, 7.3)
    assert torch.equal(out, (q[ids].float() * scale[ids, None] * torch.tensor(7.3)).to(out_dtype))


def test_float8_tables() -> None:
    codes = torch.arange(-120, 120, dtype=torch.int8).view(40, 6).view(torch.float8_e4m3fn)
    ids, scale = torch.tensor([0, 39, 7, 20, 21]), torch.rand(40, generator=torch.Generator().manual_seed(0))
    out = ops.embedding(ids, ops.pack_float8(codes), torch.empty(5, 6), 40, scale)
    assert same_bits(out, codes.float()[ids] * scale[ids, None])


def test_float8_tables_in_blocks() -> None:
    codes = torch.arange(-128, -8, dtype=torch.int8).repeat(60).view(40, 180).view(torch.float8_e4m3fn)
    ids, scales = torch.tensor([0, 39, 7, 20, 21]), torch.rand(40, 2, generator=torch.Generator().manual_seed(0))
    out = ops.embedding(ids, ops.pack_float8(codes, scales), torch.empty(5, 180), 40, torch.full((40,), 0.5))
    assert same_bits(out, codes.float()[ids] * scales.repeat_interleave(128, dim=1)[ids, :180] * 0.5)


def test_threads_and_strided_out_change_nothing() -> None:
    table, ids = table_of(100, 576), torch.arange(200) % 100
    out = apart(torch.zeros(200, 576))
    for count in (1, 2):
        with threads(count):
            assert same_bits(ops.embedding(ids, ops.pack_dense(table), out, 100), table[ids])
            out.zero_()


def test_infinities_and_nan_are_copied() -> None:
    table = torch.tensor([[torch.inf, -torch.inf], [torch.nan, 1.0]], dtype=torch.bfloat16)
    out = ops.embedding(torch.tensor([1, 0]), ops.pack_dense(table), torch.empty(2, 2), 2)
    torch.testing.assert_close(out, table[[1, 0]].float(), equal_nan=True)


@pytest.mark.parametrize("dtype", FLOATS)
def test_rows_are_taken_as_they_are(dtype: torch.dtype) -> None:
    x, out = torch.randn(5, 67).to(dtype), apart(torch.zeros(3, 67, dtype=dtype))
    assert same_bits(ops.take_rows(x, [4, 0, 4]), x[[4, 0, 4]])
    assert ops.take_rows(x, torch.tensor([1, 1, 3]), out) is out
    assert same_bits(out, x[[1, 1, 3]])
