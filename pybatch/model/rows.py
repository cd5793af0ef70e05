"""Tensors of a checkpoint whose rows are read a few at a time, and views of them in another order."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from pybatch import ops


class Rows(Protocol):
    """A tensor of a file, such as a matrix, whose rows can be read as float tensors."""

    @property
    def shape(self) -> Sequence[int]: ...

    @property
    def dtype(self) -> torch.dtype: ...

    def __getitem__(self, rows: slice, /) -> Tensor: ...

    def release(self, rows: slice, /) -> None: ...  # these will not be read again, so that memory need not hold them


@runtime_checkable
class BlockRows(Rows, Protocol):
    """A matrix whose rows can also be read as the quantised blocks of a GGUF file."""

    @property
    def block_type(self) -> str: ...  # such as "Q4_0"

    @property
    def blocks(self) -> Rows: ...  # [N, bytes of a row] uint8


@runtime_checkable
class ScaledRows(Rows, Protocol):
    """A matrix of 8-bit codes with a scale for each row: int8 for products with activations of 8 bits, or the bits of
    float8_e4m3fn for those with activations of 16, which may have one for each ops.FLOAT8_BLOCK columns."""

    @property
    def codes(self) -> Rows: ...  # [N, K] int8, or uint8 where they are float8_e4m3fn

    @property
    def row_scales(self) -> Rows: ...  # [N, 1] or [N, blocks] float32


@dataclass(frozen=True, slots=True)
class Heads:
    """The heads of a projection: how many there are, the rows of each in the checkpoint, and as packed; and of these
    how many turn in pairs."""

    count: int
    stored_dim: int
    dim: int
    rotary_dim: int = 0

    @property
    def width(self) -> int:
        return self.count * self.dim

    @property
    def stored_width(self) -> int:
        return self.count * self.stored_dim


@runtime_checkable
class MatrixStack(Rows, Protocol):
    """Matrices of one shape in one tensor, [count, N, K]."""

    def flattened(self) -> Rows: ...  # [count * N, K]


class Stacked:
    """The rows of several matrices, one below the other."""

    def __init__(self, parts: Sequence[Rows]) -> None:
        self.parts = parts
        self.shape = (sum(part.shape[0] for part in parts), *parts[0].shape[1:])
        dtypes = {part.dtype for part in parts}
        self.dtype = dtypes.pop() if len(dtypes) == 1 else torch.float32

    def __getitem__(self, rows: slice) -> Tensor:
        found = [part[wanted] for part, wanted in self._found(rows)]
        return found[0] if len(found) == 1 else torch.cat(found)

    def release(self, rows: slice) -> None:
        for part, wanted in self._found(rows):
            part.release(wanted)

    def _found(self, rows: slice) -> Iterator[tuple[Rows, slice]]:
        offset = 0
        for part in self.parts:
            start, stop = max(rows.start - offset, 0), min(rows.stop - offset, part.shape[0])
            if start < stop:
                yield part, slice(start, stop)
            offset += part.shape[0]


class Interleaved:
    """The rows of gate and up as ops.interleave_gate_up puts them; slices begin and end at multiples of PANEL."""

    def __init__(self, parts: Sequence[Rows]) -> None:
        self.parts = gate, up = parts
        self.shape = (-(-gate.shape[0] // ops.PANEL) * ops.PANEL * 2, gate.shape[1])
        self.dtype = gate.dtype if gate.dtype == up.dtype else torch.float32

    def __getitem__(self, rows: slice) -> Tensor:
        gate, up = self.parts
        halves = self._halves(rows)
        both = ops.interleave_gate_up(gate[halves], up[halves])
        skipped = rows.start % (2 * ops.PANEL)
        return both[skipped : skipped + rows.stop - rows.start]

    def release(self, rows: slice) -> None:
        for part in self.parts:
            part.release(self._halves(rows))

    def _halves(self, rows: slice) -> slice:
        """The rows of gate, and of up, that are among these."""
        first, last = rows.start // ops.PANEL, rows.stop // ops.PANEL
        return slice(first // 2 * ops.PANEL, min(-(-last // 2) * ops.PANEL, self.parts[0].shape[0]))


class Transposed:
    """The rows of matrices [count, N, K], one below the other, of a tensor that has them as [count, K, N]; or of one
    matrix, as [K, N]."""

    def __init__(self, stack: Rows) -> None:
        self.stack = stack
        *_, k, self._height = stack.shape
        self._step = 1 if len(stack.shape) == 3 else k  # rows of stack that a matrix has
        self.shape, self.dtype = (stack.shape[0] // self._step * self._height, k), stack.dtype

    def __getitem__(self, rows: slice) -> Tensor:
        found = [self.stack[self._matrix(i)].flatten(0, -2)[:, wanted].t() for i, wanted in self._found(rows)]
        return found[0] if len(found) == 1 else torch.cat(found)

    def release(self, rows: slice) -> None:
        """Each is spread over all of its matrix, which is given back with its last."""
        for i, wanted in self._found(rows):
            if wanted.stop == self._height:
                self.stack.release(self._matrix(i))

    def _matrix(self, i: int) -> slice:
        return slice(i * self._step, (i + 1) * self._step)

    def _found(self, rows: slice) -> Iterator[tuple[int, slice]]:
        for i in range(rows.start // self._height, -(-rows.stop // self._height)):
            first = i * self._height
            yield i, slice(max(rows.start - first, 0), min(rows.stop - first, self._height))


class _Padded:
    def __init__(self, rows: Rows) -> None:
        self._rows, self.dtype = rows, rows.dtype
        self.shape = (-(-rows.shape[0] // ops.PANEL) * ops.PANEL, *rows.shape[1:])

    def __getitem__(self, rows: slice) -> Tensor:
        found = self._rows[self._there(rows)]
        missing = found.new_zeros(rows.stop - rows.start - len(found), *found.shape[1:])
        return torch.cat([found, missing])

    def release(self, rows: slice) -> None:
        self._rows.release(self._there(rows))

    def _there(self, rows: slice) -> slice:
        count = self._rows.shape[0]
        return slice(min(rows.start, count), min(rows.stop, count))


class _Sliced:
    def __init__(self, rows: Rows, start: int, stop: int) -> None:
        self._rows, self._start, self.dtype = rows, start, rows.dtype
        self.shape = (stop - start, *rows.shape[1:])

    def __getitem__(self, rows: slice) -> Tensor:
        return self._rows[self._of_whole(rows)]

    def release(self, rows: slice) -> None:
        self._rows.release(self._of_whole(rows))

    def _of_whole(self, rows: slice) -> slice:
        return slice(self._start + rows.start, self._start + rows.stop)


class _Filled:
    def __init__(self, rows: Rows, heads: Heads) -> None:
        self._rows, self._stored, self._dim = rows, heads.stored_dim, heads.dim
        self.shape, self.dtype = (heads.count * heads.dim, *rows.shape[1:]), rows.dtype

    def __getitem__(self, rows: slice) -> Tensor:
        found = self._rows[self._of_heads(rows)]
        heads = found.reshape(-1, self._stored, *found.shape[1:])
        filled = found.new_zeros(len(heads), self._dim, *found.shape[1:])
        filled[:, : self._stored] = heads
        first = rows.start % self._dim
        return filled.flatten(0, 1)[first : first + rows.stop - rows.start]

    def release(self, rows: slice) -> None:
        self._rows.release(self._of_heads(rows))

    def _of_heads(self, rows: slice) -> slice:
        """The rows of all heads that these are of."""
        return slice(rows.start // self._dim * self._stored, -(-rows.stop // self._dim) * self._stored)


class _FilledColumns:
    def __init__(self, rows: Rows, heads: Heads) -> None:
        self._rows, self._heads = rows, heads
        self.shape, self.dtype = (rows.shape[0], heads.count * heads.dim), rows.dtype

    def __getitem__(self, rows: slice) -> Tensor:
        found = self._rows[rows].reshape(rows.stop - rows.start, -1, self._heads.stored_dim)
        return torch.nn.functional.pad(found, (0, self._heads.dim - self._heads.stored_dim)).flatten(1)

    def release(self, rows: slice) -> None:
        self._rows.release(rows)


class _ViewOfBlocks:
    """Rows in another order that are blocks too, in the same order."""

    def __init__(self, view: Rows, blocks: Rows, block_type: str) -> None:
        self._view, self.blocks, self.block_type = view, blocks, block_type
        self.shape, self.dtype = view.shape, view.dtype

    def __getitem__(self, rows: slice) -> Tensor:
        return self._view[rows]

    def release(self, rows: slice) -> None:
        self._view.release(rows)


class _ViewOfScaled:
    def __init__(self, view: Rows, codes: Rows, row_scales: Rows) -> None:
        self._view, self.codes, self.row_scales = view, codes, row_scales
        self.shape, self.dtype = view.shape, view.dtype

    def __getitem__(self, rows: slice) -> Tensor:
        return self._view[rows]

    def release(self, rows: slice) -> None:
        self._view.release(rows)


class Held:
    """A small tensor that is in memory."""

    def __init__(self, tensor: Tensor) -> None:
        self._tensor, self.shape, self.dtype = tensor, tuple(tensor.shape), tensor.dtype

    def __getitem__(self, rows: slice) -> Tensor:
        return self._tensor[rows]

    def release(self, rows: slice) -> None:
        pass


class _Reordered:
    """Rows of these numbers. Those that are wanted together lie near one another, or in a few runs."""

    def __init__(self, rows: Rows, order: Tensor) -> None:
        self._rows, self._order, self.dtype = rows, order, rows.dtype
        self.shape = (len(order), *rows.shape[1:])

    def __getitem__(self, rows: slice) -> Tensor:
        places, runs = self._order[rows], self._runs(rows)
        if len(runs) == 1:
            return self._rows[runs[0]][places - runs[0].start]
        return torch.cat([self._rows[run] for run in runs])

    def release(self, rows: slice) -> None:
        for run in self._runs(rows):
            self._rows.release(run)

    def _runs(self, rows: slice) -> list[slice]:
        """What to read for them: one piece where at least half of it is wanted."""
        places = self._order[rows]
        first, last = int(places.min()), int(places.max()) + 1
        if last - first <= 2 * len(places):
            return [slice(first, last)]
        ends = [*((places.diff() != 1).nonzero().flatten() + 1).tolist(), len(places)]
        return [slice(int(places[i]), int(places[j - 1]) + 1) for i, j in zip([0, *ends], ends, strict=False)]


class _ReorderedColumns:
    def __init__(self, rows: Rows, order: Tensor) -> None:
        self._rows, self._order, self.shape, self.dtype = rows, order, rows.shape, rows.dtype

    def __getitem__(self, rows: slice) -> Tensor:
        return self._rows[rows][:, self._order]

    def release(self, rows: slice) -> None:
        self._rows.release(rows)


def transposed(rows: Rows) -> Rows:
    """A matrix transposed; of one that is transposed already itself, in its own bits."""
    return rows.stack if isinstance(rows, Transposed) else Transposed(rows)


def reordered(rows: Rows, order: Tensor) -> Rows:
    """The rows of these numbers, unread."""
    return _viewed(rows, lambda part: _Reordered(part, order))


def reordered_columns(rows: Rows, groups: Tensor, size: int) -> Rows:
    """The columns of these groups of so many, unread; as blocks where none is longer than a group."""

    def view(part: Rows, width: int) -> Rows:
        return _ReorderedColumns(part, (groups[:, None] * width + torch.arange(width)).flatten())

    if not isinstance(rows, BlockRows):
        return view(rows, size)
    block = ops.GGUF_BLOCKS[rows.block_type]
    if size % block.weights:
        return view(rows, size)
    return _ViewOfBlocks(view(rows, size), view(rows.blocks, size // block.weights * block.bytes), rows.block_type)


def sliced(rows: Rows, start: int, stop: int) -> Rows:
    """rows[start:stop], unread."""
    return _viewed(rows, lambda part: _Sliced(part, start, stop))


def grouped(rows: Rows, groups: int, start: int, stop: int) -> Rows:
    """Rows start:stop of each of so many groups, unread."""
    return reordered(rows, torch.arange(rows.shape[0]).view(groups, -1)[:, start:stop].flatten())


def filled(rows: Rows, heads: Heads) -> Rows:
    """The rows of a projection (or its bias) with zeros behind those of each head."""
    return rows if heads.stored_dim == heads.dim else _viewed(rows, lambda part: _Filled(part, heads))


def filled_columns(rows: Rows, heads: Heads) -> Rows:
    """The columns of a projection with zeros behind those of each head."""
    return rows if heads.stored_dim == heads.dim else _FilledColumns(rows, heads)


def padded(rows: Rows) -> Rows:
    """With rows of zeros behind, up to a multiple of PANEL."""
    return rows if rows.shape[0] % ops.PANEL == 0 else _viewed(rows, _Padded)


def interleaved(gate: Rows, up: Rows) -> Rows:
    """Interleaved, in the bits of both where they are alike."""
    view = Interleaved([gate, up])
    if isinstance(gate, BlockRows) and isinstance(up, BlockRows) and gate.block_type == up.block_type:
        return _ViewOfBlocks(view, Interleaved([gate.blocks, up.blocks]), gate.block_type)
    if isinstance(gate, ScaledRows) and isinstance(up, ScaledRows) and len(_kinds_of([gate, up])) == 1:
        codes, scales = Interleaved([gate.codes, up.codes]), Interleaved([gate.row_scales, up.row_scales])
        return _ViewOfScaled(view, codes, scales)
    return view


def stacked(parts: Sequence[Rows]) -> Rows:
    """Stacked, in the bits of all where they are alike."""
    if len(parts) == 1:
        return parts[0]
    view = Stacked(parts)
    blocks = [part for part in parts if isinstance(part, BlockRows)]
    if len(blocks) == len(parts) and len({part.block_type for part in blocks}) == 1:
        return _ViewOfBlocks(view, Stacked([part.blocks for part in blocks]), blocks[0].block_type)
    scaled = [part for part in parts if isinstance(part, ScaledRows)]
    if len(scaled) == len(parts) and len(_kinds_of(scaled)) == 1:
        codes, scales = Stacked([part.codes for part in scaled]), Stacked([part.row_scales for part in scaled])
        return _ViewOfScaled(view, codes, scales)
    return view


def _kinds_of(parts: Sequence[ScaledRows]) -> set[tuple[torch.dtype, int]]:
    return {(part.codes.dtype, part.row_scales.shape[1]) for part in parts}


def turned(rows: Rows, heads: int, rotary_dim: int) -> Rows:
    """The rows of a q or k projection (or its bias) of so many heads, in which the pairs that rotate, of the first
    rotary_dim rows of a head, lie side by side, in the order (i, i + rotary_dim / 2) of the kernels."""
    of_heads = torch.arange(rows.shape[0]).view(heads, -1)
    pairs = of_heads[:, :rotary_dim].reshape(heads, -1, 2).transpose(1, 2).flatten(1)
    return reordered(rows, torch.cat([pairs, of_heads[:, rotary_dim:]], dim=1).flatten())


def _viewed(rows: Rows, view: Callable[[Rows], Rows]) -> Rows:
    if isinstance(rows, BlockRows):
        return _ViewOfBlocks(view(rows), view(rows.blocks), rows.block_type)
    if isinstance(rows, ScaledRows):
        return _ViewOfScaled(view(rows), view(rows.codes), view(rows.row_scales))
    return view(rows)
