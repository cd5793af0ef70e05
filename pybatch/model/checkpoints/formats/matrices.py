"""Quantised matrices as a WeightLoader takes them: rows as floats, and, where rows are whole blocks of 32, as blocks of
GGUF types, which have kernels. Most 4-bit and 8-bit formats are such blocks but for the order of their bits:

    Q4_0: w = d * (q - 8), Q4_1: w = d * q + m, Q8_0: w = d * q; d and m are float16

so their codes and scales are kept, and a scale of 64 or 128 columns becomes that of two or four blocks. Where a group
has a zero point of its own, m is rounded, by at most a 137th of a step: dequantising to float16 rounds as much. What is
no such block becomes Q8_0, whose steps are a 127th of a block's largest weight: small beside those of the formats that
end there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pybatch import ops
from pybatch.model.errors import ModelError
from pybatch.model.rows import Rows

BLOCK = 32
E4M3 = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float()


@dataclass(frozen=True)
class Made:
    """Rows that are made of others when they are asked for.

    source: those; None where each row is spread over all of them, so that their pages are given back at the end."""

    source: Rows | None
    make: Callable[[slice], Tensor]
    shape: Sequence[int]
    dtype: torch.dtype

    def __getitem__(self, rows: slice) -> Tensor:
        return self.make(rows)

    def release(self, rows: slice) -> None:
        if self.source is not None:
            self.source.release(rows)


@dataclass(frozen=True)
class BlockMatrix:
    """A matrix that can also be read as blocks of a GGUF type."""

    rows: Rows
    block_type: str
    blocks: Rows
    requantized: str  # what the file has that no block has; empty where blocks are its own bits

    @property
    def shape(self) -> Sequence[int]:
        return self.rows.shape

    @property
    def dtype(self) -> torch.dtype:
        return self.rows.dtype

    def __getitem__(self, rows: slice) -> Tensor:
        return self.rows[rows]

    def release(self, rows: slice) -> None:
        self.rows.release(rows)


@dataclass(frozen=True)
class GroupedRows:
    """w = scale * (code - zero), with a scale and a zero for each group of columns."""

    name: str  # for errors
    bits: int
    codes: Rows  # [N, K] uint8
    scales: Tensor  # [N, G]
    zeros: Tensor | int  # [N, G], or the one of all groups
    group_of: Tensor | None = None  # [K] each column's group; None: K / G columns side by side

    @property
    def shape(self) -> Sequence[int]:
        return self.codes.shape

    @property
    def dtype(self) -> torch.dtype:
        return self.scales.dtype if self.scales.dtype.itemsize == 2 else torch.bfloat16

    def __getitem__(self, rows: slice) -> Tensor:
        zeros = self.zeros if isinstance(self.zeros, int) else self._spread(self.zeros[rows].float())
        return (self.codes[rows].float() - zeros) * self._spread(self.scales[rows].float())

    def release(self, rows: slice) -> None:
        self.codes.release(rows)

    def _spread(self, values: Tensor) -> Tensor:
        """[n, G] -> [n, K]."""
        if self.group_of is not None:
            return values.index_select(1, self.group_of)
        return values.repeat_interleave(self.shape[1] // values.shape[1], dim=1)


@dataclass(frozen=True)
class ChannelRows:
    """8-bit codes with a scale for each row, or float8 with one for each ops.FLOAT8_BLOCK columns of it."""

    codes: Rows  # [N, K] int8, or uint8 with the bits of float8_e4m3fn
    scale: Tensor  # [N, 1] or [N, blocks] float32

    @property
    def shape(self) -> Sequence[int]:
        return self.codes.shape

    @property
    def dtype(self) -> torch.dtype:
        return torch.bfloat16

    def __getitem__(self, rows: slice) -> Tensor:
        codes, scale = self.codes[rows], self.scale[rows]
        if scale.shape[1] > 1:
            scale = scale.repeat_interleave(ops.FLOAT8_BLOCK, dim=1)[:, : codes.shape[1]]
        return (looked_up(E4M3, codes) if codes.dtype == torch.uint8 else codes.float()) * scale

    @property
    def row_scales(self) -> Rows:
        return Made(None, self.scale.__getitem__, self.scale.shape, self.scale.dtype)

    def release(self, rows: slice) -> None:
        self.codes.release(rows)


def looked_up(table: Tensor, codes: Tensor) -> Tensor:
    """table[codes], in a fifth of the time that either indexing or torch's own conversion of float8 takes."""
    return table.index_select(0, codes.flatten().int()).view(codes.shape)


def one_if_equal(zeros: Tensor) -> Tensor | int:
    """The zeros of groups, or the one of all."""
    first = int(zeros[0, 0])
    return first if bool((zeros == first).all()) else zeros


def groups_of(order: Tensor, count: int, name: str) -> Tensor | None:
    """order: [K] the group of each column; None if the groups are equal parts side by side. Raises ModelError for one
    that is none of `count`."""
    if int(order.min()) < 0 or int(order.max()) >= count:
        raise ModelError(
            f"{name}: expected groups of columns from 0 to {count - 1}, got {order.min()} to {order.max()}"
        )
    size = -(-len(order) // count)
    return None if torch.equal(order, torch.arange(len(order)) // size) and len(order) % count == 0 else order


def grouped(rows: GroupedRows) -> Rows:
    """The matrix, as blocks of the same weights if there is a type that has them."""
    columns, groups, zeros = rows.shape[1], rows.scales.shape[1], rows.zeros
    highest = (1 << rows.bits) - 1
    if rows.group_of is not None:
        return requantized(rows, "groups of columns that are no equal parts side by side", rows.name)
    if columns % (groups * BLOCK):
        return requantized(rows, f"groups of {columns // groups} columns", rows.name)
    if isinstance(zeros, int) and zeros <= 8 and highest - zeros < 8:
        return _blocks(rows, "Q4_0", lambda part: nibbles(rows.codes[part] + (8 - zeros)))
    if isinstance(zeros, int) and zeros <= 128 and highest - zeros < 128:
        return _blocks(rows, "Q8_0", lambda part: rows.codes[part] - zeros)
    if rows.bits <= 4:
        return _blocks(rows, "Q4_1", lambda part: nibbles(rows.codes[part]))
    return requantized(rows, "zero points of 8 bits", rows.name)


def signed(
    values: Rows, scale: Tensor, zeros: Tensor | None, name: str, bits: int = 8, *, int8_activations: bool = False
) -> Rows:
    """values: [N, K] int8, codes with a sign, of so many bits; scale and zeros: one, or [N], or [N, groups].
    int8_activations: the makers had activations of 8 bits, with a scale for each token, in mind."""
    n, k = values.shape
    half = 1 << bits - 1
    scale = by_row(scale, n, k, f"{name}: scale")
    offsets = half if zeros is None else one_if_equal(by_row(zeros, n, k, f"{name}: zero point").float() + half)
    if int8_activations and bits == 8 and offsets == half and scale.shape[1] == 1:
        return ChannelRows(values, scale.float())
    codes = Made(values, lambda rows: values[rows].view(torch.uint8) + half, (n, k), torch.uint8)
    return grouped(GroupedRows(name, bits, codes, scale, offsets))


def by_row(values: Tensor, n: int, k: int, name: str) -> Tensor:
    """[N, groups of columns] of one value, [N] or [N, groups]. Raises ModelError for other shapes."""
    if values.numel() == 1:
        return values.view(1, 1).expand(n, 1)
    if not 1 <= values.ndim <= 2 or len(values) != n or k % (values.numel() // n):
        raise ModelError(f"{name}: expected one, or those of the {n} rows of [{n}, {k}], got {list(values.shape)}")
    return values.view(n, -1)


def requantized(rows: Rows, reason: str, name: str) -> Rows:
    """The matrix, as Q8_0 blocks of nearly the same weights; as it is, if its rows are no whole blocks."""
    n, k = rows.shape
    if k % BLOCK:
        return rows
    size = k // BLOCK * ops.GGUF_BLOCKS["Q8_0"].bytes
    blocks = Made(rows, lambda part: _q8_0(rows[part], name), (n, size), torch.uint8)
    return BlockMatrix(rows, "Q8_0", blocks, reason)


def _q8_0(weight: Tensor, name: str) -> Tensor:
    """[n, K] float32 -> [n, bytes of a row] uint8."""
    blocks = weight.view(len(weight), -1, BLOCK)
    scale = _halves(blocks.abs().amax(dim=2, keepdim=True) / 127, name)
    inverse = torch.where(scale > 0, 1 / scale.float(), 0.0)
    codes = (blocks * inverse).round_().clamp_(-127, 127).to(torch.int8)
    return torch.cat([scale.view(torch.uint8), codes.view(torch.uint8)], dim=2).flatten(1)


def _blocks(rows: GroupedRows, kind: str, codes: Callable[[slice], Tensor]) -> BlockMatrix:
    n, k = rows.shape
    groups, count, zeros = rows.scales.shape[1], k // BLOCK, rows.zeros

    def make(part: slice) -> Tensor:
        scale = rows.scales[part].float()
        halves = [scale]
        if kind == "Q4_1":
            halves.append(-scale * (zeros if isinstance(zeros, int) else zeros[part].float()))
        each = _halves(torch.stack(halves, dim=2), rows.name).repeat_interleave(count // groups, dim=1)
        packed = codes(part).view(torch.uint8).view(len(each), count, -1)
        return torch.cat([each.view(torch.uint8), packed], dim=2).flatten(1)

    blocks = Made(rows, make, (n, count * ops.GGUF_BLOCKS[kind].bytes), torch.uint8)
    return BlockMatrix(rows, kind, blocks, "")


def _halves(values: Tensor, name: str) -> Tensor:
    halves = values.half()
    if not halves.isfinite().all():
        raise ModelError(f"{name}: expected scales that float16 can hold, got {values.abs().max():g}")
    return halves


def nibbles(codes: Tensor) -> Tensor:
    """[n, K] codes of four bits -> [n, K / 2] bytes, in each block of 32 the first 16 codes low and the others high."""
    halves = codes.view(len(codes), -1, 2, BLOCK // 2)
    return (halves[:, :, 0] | halves[:, :, 1] << 4).flatten(1)
