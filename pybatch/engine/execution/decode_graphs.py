"""Decode steps as replays of recorded graphs: one call instead of hundreds."""

from __future__ import annotations

from bisect import bisect_left
from contextlib import AbstractContextManager
from copy import copy

import torch
from torch import Tensor

from pybatch.engine.execution.kv_cache import KvCache
from pybatch.engine.execution.step_inputs import StepInputs
from pybatch.engine.scheduling.scheduler import Chunk, num_decodes
from pybatch.model.batch import ForwardBatch
from pybatch.model.decoder import Decoder
from pybatch.ops import CpuGraph


class DecodeGraphs:
    """Runs batches of one token per sequence in graphs, each captured when a batch of its size first comes.

    On a GPU a batch is padded to the next of a few sizes. No row's bits depend on other rows, so a replay gives the
    same bits as an eager step.
    """

    def __init__(self, decoder: Decoder, kv_cache: KvCache, inputs: StepInputs, *, max_seqs: int) -> None:
        self._decoder = copy(decoder)
        self._decoder.make_buffers(max_seqs)  # of its own, which never move: their addresses are in the graphs
        self._caches = kv_cache.layers
        self._inputs = inputs
        self._sizes = list(range(1, max_seqs + 1))
        if decoder.device.type == "cuda":
            self._sizes = sorted({*range(1, min(5, max_seqs)), *range(8, max_seqs, 8), max_seqs})
        self._graphs: dict[int, tuple[CpuGraph | torch.cuda.CUDAGraph, Tensor]] = {}

    @staticmethod
    def takes(chunks: list[Chunk]) -> bool:
        return num_decodes(chunks) == len(chunks)

    def run(self, chunks: list[Chunk]) -> Tensor:
        """The logits, [S, vocab] float32, valid until the next call."""
        size = self._sizes[bisect_left(self._sizes, len(chunks))]
        batch = self._inputs.fill(chunks, size)
        if size not in self._graphs:
            self._graphs[size] = self._capture(batch)
        graph, logits = self._graphs[size]
        graph.replay()
        return logits[: len(chunks)]

    def _capture(self, batch: ForwardBatch) -> tuple[CpuGraph | torch.cuda.CUDAGraph, Tensor]:
        graph: CpuGraph | torch.cuda.CUDAGraph
        recording: AbstractContextManager[None]
        if self._decoder.device.type == "cuda":
            graph = torch.cuda.CUDAGraph()
            recording = torch.cuda.graph(graph)
            self._decoder.forward(batch, self._caches)  # kernels are loaded when first run, not in a capture
            torch.cuda.synchronize(self._decoder.device)
        else:
            graph = recording = CpuGraph()
        with recording:
            logits = self._decoder.forward(batch, self._caches)
        return graph, logits
