"""From rows to packed matrices, a few rows at a time: beside the packed copy, no more than some rows per thread is ever
in memory. The checkpoint itself is mapped, and its pages are given back as they have been read."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import groupby

import torch
from torch import Tensor

from pybatch import ops
from pybatch.machine.huge_pages import WeightMemory
from pybatch.machine.memory import trim_memory
from pybatch.model.layers import DenseLinear, GGUFLinear, Packed, ScaledLinear, SideBySide
from pybatch.model.rows import BlockRows, Interleaved, Rows, ScaledRows, Stacked

OWN_SCALED: Mapping[str, tuple[torch.dtype, Callable[..., Tensor]]] = {  # ScaledRows, beside the names of block types
    "int8": (torch.int8, ops.matmul_w8a8),
    "fp8": (torch.float8_e4m3fn, ops.matmul_w8a16),
}
FP8_BLOCKS = "fp8 in blocks"
CHUNK = 1 << 17  # weights handled at a time by one thread: what stays in its cache


class Packer:
    """Makes the projections of a decoder out of rows.

    dtype: of activations; dense weights are kept in it, or in the rows' own dtype where that is smaller. device: where
    the decoder is to run. keeps_bits: matrices that a kernel takes as they are keep their bits, and others are dense.
    int8_matmul: where bits are not kept, the kernel for which weights are quantised; None: all are dense. advance: as
    WeightLoader's.
    """

    def __init__(
        self,
        dtype: torch.dtype,
        device: torch.device,
        keeps_bits: bool,
        int8_matmul: Callable[..., Tensor] | None,
        advance: Callable[[int], None] = lambda count: None,
    ) -> None:
        self.dtype, self.device, self.keeps_bits, self.advance = dtype, device, keeps_bits, advance
        self._int8_matmul = int8_matmul
        self.memory = WeightMemory(device)

    @contextmanager
    def working(self) -> Iterator[None]:
        """Weights are packed as long as this is open, by as many threads as torch uses."""
        with _worker_pool() as self.pool:
            yield
        trim_memory()

    def pack(self, rows: Stacked | Interleaved, bias: Tensor | None, column_scale: Tensor | None = None) -> Packed:
        if self.keeps_bits:
            return self._kept(rows, bias)
        return self.dense(rows, bias) if self._int8_matmul is None else self._int8(rows, bias, column_scale)

    def dense(self, rows: Rows, bias: Tensor | None, dtype: torch.dtype | None = None) -> DenseLinear:
        n, k = rows.shape
        dtype = dtype or (rows.dtype if rows.dtype.itemsize < self.dtype.itemsize else self.dtype)
        packed = self.memory.empty(*ops.packed_dense_shape(n, k, dtype), dtype=dtype)

        def pack(chunk: slice, panels: slice) -> None:
            packed[panels] = ops.pack_dense(rows[chunk].to(dtype))

        self._for_chunks(rows, pack)
        return DenseLinear(packed, n, bias)

    def _int8(self, rows: Rows, bias: Tensor | None, column_scale: Tensor | None) -> ScaledLinear:
        assert self._int8_matmul is not None

        def quantize(chunk: slice) -> tuple[Tensor, Tensor]:
            return ops.quantize_int8(rows[chunk] if column_scale is None else rows[chunk] * column_scale)

        return self._scaled(rows, bias, quantize, self._int8_matmul)

    def _scaled(
        self,
        rows: Rows,
        bias: Tensor | None,
        codes_and_scale: Callable[[slice], tuple[Tensor, Tensor]],
        matmul: Callable[..., Tensor],
        dtype: torch.dtype = torch.int8,
    ) -> ScaledLinear:
        n, k = rows.shape
        packed = self.memory.empty(-(-n // ops.PANEL), -(-k // 4) + 1, ops.PANEL, 4, dtype=dtype)
        scale = torch.empty(n, dtype=torch.float32, device=self.device)

        def pack(chunk: slice, panels: slice) -> None:
            codes, scale[chunk] = codes_and_scale(chunk)
            of_dtype = ops.pack_int8 if dtype == torch.int8 else ops.pack_float8
            packed[panels] = of_dtype(codes)

        self._for_chunks(rows, pack)
        return ScaledLinear(matmul, packed, scale, bias)

    def pack_parts(self, parts: Sequence[Rows], bias: Tensor | None) -> SideBySide:
        """A projection for each run of parts that are kept alike."""
        runs = [Stacked(list(run)) for _, run in groupby(parts, kind_of)]
        biases = [None] * len(runs) if bias is None else bias.split_with_sizes([run.shape[0] for run in runs])
        return SideBySide([self._kept(run, part) for run, part in zip(runs, biases, strict=True)])

    def _kept(self, rows: Stacked | Interleaved, bias: Tensor | None) -> Packed:
        kind = kind_of(rows.parts[0])
        if kind is None:
            return self.dense(rows, bias)
        if kind in OWN_SCALED or kind == FP8_BLOCKS:
            return self._own_scaled(rows, kind, bias)
        return self._blocks(rows, kind, bias)

    def _own_scaled(self, rows: Stacked | Interleaved, kind: str, bias: Tensor | None) -> ScaledLinear:
        parts = [part for part in rows.parts if isinstance(part, ScaledRows)]
        codes = type(rows)([part.codes for part in parts])
        scales = type(rows)([part.row_scales for part in parts])
        if kind == FP8_BLOCKS:
            return self._float8_blocks(rows, codes, scales, bias)
        dtype, matmul = OWN_SCALED[kind]
        return self._scaled(rows, bias, lambda chunk: (codes[chunk], scales[chunk][:, 0]), matmul, dtype)

    def _float8_blocks(self, rows: Rows, codes: Rows, scales: Rows, bias: Tensor | None) -> ScaledLinear:
        n = rows.shape[0]
        packed = self.memory.empty(*ops.packed_float8_blocks_shape(*rows.shape), dtype=torch.float8_e4m3fn)

        def pack(chunk: slice, panels: slice) -> None:
            packed[panels] = ops.pack_float8(codes[chunk], scales[chunk])

        self._for_chunks(rows, pack)
        return ScaledLinear(ops.matmul_w8a16, packed, torch.ones(n, device=self.device), bias)

    def _blocks(self, rows: Stacked | Interleaved, kind: str, bias: Tensor | None) -> GGUFLinear:
        n, k = rows.shape
        blocks = type(rows)([part.blocks for part in rows.parts if isinstance(part, BlockRows)])
        packed = self.memory.empty(*ops.packed_gguf_shape(n, k, kind), dtype=ops.GGUF_BLOCKS[kind].dtype)

        def pack(chunk: slice, panels: slice) -> None:
            packed[panels] = ops.pack_gguf(blocks[chunk], kind)

        self._for_chunks(rows, pack)
        return GGUFLinear(packed, n, bias)

    def _for_chunks(self, rows: Rows, pack: Callable[[slice, slice], None]) -> None:
        n, k = rows.shape
        panels, step = -(-n // ops.PANEL), max(1, CHUNK // (k * ops.PANEL))

        def run(panel: int) -> None:
            chunk = slice(panel * ops.PANEL, min((panel + step) * ops.PANEL, n))
            pack(chunk, slice(panel, min(panel + step, panels)))
            rows.release(chunk)
            self.advance((chunk.stop - chunk.start) * k)

        for _ in self.pool.map(run, range(0, panels, step)):
            pass


class PackingPlan(Packer):
    """A Packer that allocates nothing: what it makes has shapes and dtypes only."""

    count = 0  # of weights that would be packed

    def _for_chunks(self, rows: Rows, pack: Callable[[slice, slice], None]) -> None:
        n, k = rows.shape
        self.count += n * k


def kind_of(rows: Rows) -> str | None:
    """In which bits a kernel takes the matrix as it is: a block type, one of OWN_SCALED, FP8_BLOCKS; None: in none."""
    if isinstance(rows, ScaledRows):
        if rows.codes.dtype == torch.int8:
            return "int8"
        return "fp8" if rows.row_scales.shape[1] == 1 else FP8_BLOCKS
    return rows.block_type if isinstance(rows, BlockRows) and rows.block_type in ops.GGUF_BLOCKS else None


@contextmanager
def _worker_pool() -> Iterator[ThreadPoolExecutor]:
    """As many threads as torch uses, each of which runs torch's own operations serially."""
    threads = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            yield pool
    finally:
        torch.set_num_threads(threads)  # the workers' setting is also the default of threads still to come
