"""Decode steps as replays of graphs: one call instead of hundreds."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from copy import copy

import torch
from torch import Tensor

from pybatch.engine.execution.kv_cache import KvCache
from pybatch.engine.scheduling.scheduler import Chunk
from pybatch.model.batch import ForwardBatch
from pybatch.model.decoder import Decoder
from pybatch.ops import CpuGraph


class DecodeGraphs:
    """Runs batches of one token a sequence, in graphs that are captured when a size of batch is first met.

    On a GPU a batch is padded to the next of a few sizes. A padding row is a sequence of one token that is written to
    no slot, and no row's bits depend on others, so that a replay has the bits of an eager step.
    """

    def __init__(self, decoder: Decoder, kv_cache: KvCache, *, block_size: int, max_seqs: int, max_blocks: int) -> None:
        self._decoder = copy(decoder)
        self._decoder.make_buffers(max_seqs)  # of its own, which never move: their addresses are in the graphs
        self._caches = kv_cache.layers
        self._block_size, self._max_blocks = block_size, max_blocks
        self._sizes = list(range(1, max_seqs + 1))
        if decoder.device.type == "cuda":
            self._sizes = sorted({*range(1, 5), *range(8, max_seqs, 8), max_seqs})
        self._graphs: dict[int, tuple[StepInputs, CpuGraph | torch.cuda.CUDAGraph, Tensor]] = {}

    @staticmethod
    def takes(chunks: Sequence[Chunk]) -> bool:
        return all(chunk.num_tokens == 1 and chunk.complete for chunk in chunks)

    def run(self, chunks: Sequence[Chunk]) -> Tensor:
        """The logits, [S, vocab] float32, valid until the next call."""
        size = next(size for size in self._sizes if size >= len(chunks))
        if size not in self._graphs:
            self._graphs[size] = self._capture(size)
        inputs, graph, logits = self._graphs[size]
        inputs.fill(chunks)
        graph.replay()
        return logits[: len(chunks)]

    def _capture(self, size: int) -> tuple[StepInputs, CpuGraph | torch.cuda.CUDAGraph, Tensor]:
        inputs = StepInputs(size, self._max_blocks, self._block_size, self._decoder.device)
        graph: CpuGraph | torch.cuda.CUDAGraph
        recording: AbstractContextManager[None]
        if self._decoder.device.type == "cuda":
            graph = torch.cuda.CUDAGraph()
            recording = torch.cuda.graph(graph)
            self._decoder.forward(inputs.batch, self._caches)  # kernels are loaded when first run, not in a capture
            torch.cuda.synchronize(self._decoder.device)
        else:
            graph = recording = CpuGraph()
        with recording:
            logits = self._decoder.forward(inputs.batch, self._caches)
        return inputs, graph, logits


class StepInputs:
    """The tensors of a decode batch of a given size, in one piece, so that one copy takes them to a GPU."""

    def __init__(self, size: int, max_blocks: int, block_size: int, device: torch.device) -> None:
        int64s, int32s = 4 * size, size * max_blocks + 2 * size + 1
        words = int64s + -(-int32s // 2)
        on_gpu = device.type == "cuda"
        self._staging = torch.zeros(words, dtype=torch.int64, pin_memory=on_gpu)
        self._memory = torch.zeros(words, dtype=torch.int64, device=device) if on_gpu else self._staging
        self._copied = torch.cuda.Event() if on_gpu else None  # type: ignore[no-untyped-call]
        self._block_size = block_size
        self.batch = _batch(self._memory, size, max_blocks)
        host = _batch(self._staging, size, max_blocks)
        self._token_ids, self._positions, self._slots = (
            each.numpy() for each in (host.token_ids, host.positions, host.slots)
        )
        self._block_tables, self._seq_lens = host.block_tables.numpy(), host.seq_lens.numpy()
        host.query_start.copy_(torch.arange(size + 1))
        host.logits_rows.copy_(torch.arange(size))
        self.fill(())

    def fill(self, chunks: Sequence[Chunk]) -> None:
        """Takes a batch of at most this size to the device."""
        if self._copied is not None:
            self._copied.synchronize()  # the last copy may still be reading
        for i, chunk in enumerate(chunks):
            sequence = chunk.sequence
            position, blocks = sequence.num_computed, sequence.blocks
            self._token_ids[i] = sequence.tokens[position]
            self._positions[i] = position
            self._slots[i] = blocks[position // self._block_size] * self._block_size + position % self._block_size
            self._block_tables[i, : len(blocks)] = blocks
            self._seq_lens[i] = position + 1
        padding = slice(len(chunks), None)
        self._token_ids[padding] = self._positions[padding] = 0
        self._block_tables[padding] = 0
        self._slots[padding] = -1
        self._seq_lens[padding] = 1
        if self._copied is not None:
            self._memory.copy_(self._staging, non_blocking=True)
            self._copied.record()


def _batch(memory: Tensor, size: int, max_blocks: int) -> ForwardBatch:
    tokens, positions, slots, rows = memory[: 4 * size].view(4, size).unbind()
    tables, starts, lengths = (
        memory[4 * size :].view(torch.int32)[: size * max_blocks + 2 * size + 1]
    ).split_with_sizes((size * max_blocks, size + 1, size))
    return ForwardBatch(
        token_ids=tokens,
        positions=positions,
        slots=slots,
        block_tables=tables.view(size, max_blocks),
        query_start=starts,
        seq_lens=lengths,
        logits_rows=rows,
    )
