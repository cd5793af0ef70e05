"""Decode steps as replays of CUDA graphs: one launch instead of hundreds."""

from __future__ import annotations

from copy import copy

import torch
from torch import Tensor

from pybatch.engine.kv_cache import KvCache
from pybatch.model.batch import ForwardBatch
from pybatch.model.decoder import Decoder


class DecodeGraphs:
    """Runs batches of one token a sequence on a GPU.

    A batch is padded to the next of a few sizes, each with a graph that is captured when the size is first met. A
    padding row is a sequence of one token that is written to no slot, and no row's bits depend on others, so that a
    replay has the bits of an eager step.
    """

    def __init__(self, decoder: Decoder, kv_cache: KvCache, *, max_seqs: int, max_blocks: int) -> None:
        self._decoder = copy(decoder)
        self._decoder.make_buffers()  # of its own, which never move: their addresses are in the graphs
        self._caches = kv_cache.layers
        self._max_blocks = max_blocks
        self._sizes = [*range(1, 5), *range(8, max_seqs, 8)]
        self._sizes = [size for size in self._sizes if size < max_seqs] + [max_seqs]
        self._decoder.forward(self._inputs(max_seqs).on_device, self._caches)  # the buffers' full size
        self._graphs: dict[int, tuple[StepInputs, torch.cuda.CUDAGraph, Tensor]] = {}

    @staticmethod
    def takes(batch: ForwardBatch) -> bool:
        return len(batch.token_ids) == len(batch.seq_lens) == len(batch.logits_rows)

    def run(self, batch: ForwardBatch) -> Tensor:
        """The logits, [S, vocab] float32, valid until the next call."""
        count = len(batch.seq_lens)
        size = next(size for size in self._sizes if size >= count)
        if size not in self._graphs:
            self._graphs[size] = self._capture(size)
        inputs, graph, logits = self._graphs[size]
        inputs.fill(batch)
        graph.replay()
        return logits[:count]

    def _inputs(self, size: int) -> StepInputs:
        return StepInputs(size, self._max_blocks, self._decoder.device)

    def _capture(self, size: int) -> tuple[StepInputs, torch.cuda.CUDAGraph, Tensor]:
        inputs, graph = self._inputs(size), torch.cuda.CUDAGraph()
        self._decoder.forward(inputs.on_device, self._caches)  # kernels are loaded when first run, not in a capture
        torch.cuda.synchronize(self._decoder.device)
        with torch.cuda.graph(graph):
            logits = self._decoder.forward(inputs.on_device, self._caches)
        return inputs, graph, logits


class StepInputs:
    """The tensors of a decode batch of a given size, in one piece, so that one copy takes them to the device."""

    def __init__(self, size: int, max_blocks: int, device: torch.device) -> None:
        int64s, int32s = 4 * size, size * max_blocks + 2 * size + 1
        words = int64s + -(-int32s // 2)
        self._staging = torch.zeros(words, dtype=torch.int64, pin_memory=True)
        self._copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
        self._memory = torch.zeros(words, dtype=torch.int64, device=device)
        self.on_host = self._batch(self._staging, size, max_blocks)
        self.on_device = self._batch(self._memory, size, max_blocks)
        self._pad(0)
        self.on_host.query_start.copy_(torch.arange(size + 1))
        self.on_host.logits_rows.copy_(torch.arange(size))
        self._memory.copy_(self._staging)

    @staticmethod
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

    def _pad(self, first: int) -> None:
        host = self.on_host
        host.token_ids[first:] = 0
        host.positions[first:] = 0
        host.slots[first:] = -1
        host.block_tables[first:] = 0
        host.seq_lens[first:] = 1

    def fill(self, batch: ForwardBatch) -> None:
        """Takes a batch of the host, of at most this size, to the device."""
        self._copied.synchronize()  # the last copy may still be reading
        count, host = len(batch.seq_lens), self.on_host
        host.token_ids[:count] = batch.token_ids
        host.positions[:count] = batch.positions
        host.slots[:count] = batch.slots
        host.block_tables[:count, : batch.block_tables.shape[1]] = batch.block_tables
        host.seq_lens[:count] = batch.seq_lens
        self._pad(count)
        self._memory.copy_(self._staging, non_blocking=True)
        self._copied.record()
