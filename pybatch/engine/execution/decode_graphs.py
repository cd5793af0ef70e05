"""Decode steps as replays of recorded graphs: one call instead of hundreds."""

from __future__ import annotations

from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import AbstractContextManager
from copy import copy

import torch
from torch import Tensor

from pybatch.engine.execution.step_inputs import StepInputs
from pybatch.engine.scheduling.step import Chunk, num_decodes
from pybatch.model.batch import ForwardBatch, LayerCache, LayerState
from pybatch.model.decoder import Decoder
from pybatch.ops import CpuGraph

_VERIFYING_TOKENS = 128  # of steps with drafts: for more, what a graph saves is little beside the kernels
_VERIFYING_GRAPHS = 64  # that are kept, those that were used last


class DecodeGraphs:
    """Runs batches of one token per sequence in graphs, each captured when a batch of its size first comes; on a CPU,
    where that is quick, batches with drafts too, by the numbers of sequences and tokens.

    On a GPU a batch is padded to the next of a few sizes. No row's bits depend on other rows, so a replay gives the
    same bits as an eager step.
    """

    def __init__(
        self,
        decoder: Decoder,
        caches: Sequence[LayerCache | LayerState],
        inputs: StepInputs,
        *,
        max_seqs: int,
        max_tokens: int,
    ) -> None:
        """max_tokens: of a step with drafts; max_seqs if there are none."""
        on_cpu = decoder.device.type == "cpu"
        self._max_tokens = max(max_seqs, min(max_tokens, _VERIFYING_TOKENS)) if on_cpu else max_seqs
        self._decoder = copy(decoder)
        self._decoder.make_buffers(self._max_tokens)  # of its own, which never move: their addresses are in the graphs
        self._caches = caches
        self._inputs = inputs
        self._sizes = list(range(1, max_seqs + 1))
        if decoder.device.type == "cuda":
            self._sizes = sorted({*range(1, min(5, max_seqs)), *range(8, max_seqs, 8), max_seqs})
        self._graphs: dict[int, tuple[CpuGraph | torch.cuda.CUDAGraph, Tensor]] = {}
        self._verifying: OrderedDict[tuple[int, int], tuple[CpuGraph | torch.cuda.CUDAGraph, Tensor]] = OrderedDict()

    def takes(self, chunks: list[Chunk]) -> bool:
        if num_decodes(chunks) < len(chunks):
            return False
        tokens = sum([chunk.num_tokens for chunk in chunks])
        return tokens == len(chunks) or (self._decoder.device.type == "cpu" and tokens <= self._max_tokens)

    def run(self, chunks: list[Chunk]) -> Tensor:
        """The logits, [T, vocab] float32, valid until the next call."""
        if any(chunk.drafts for chunk in chunks):
            return self._verify(chunks)
        size = self._sizes[bisect_left(self._sizes, len(chunks))]
        batch = self._inputs.fill(chunks, size)
        if size not in self._graphs:
            self._graphs[size] = self._capture(batch)
        graph, logits = self._graphs[size]
        graph.replay()
        return logits[: len(chunks)]

    def _verify(self, chunks: list[Chunk]) -> Tensor:
        batch = self._inputs.fill(chunks)
        key = len(chunks), len(batch.token_ids)
        if key not in self._verifying:
            if len(self._verifying) == _VERIFYING_GRAPHS:
                self._verifying.popitem(last=False)
            self._verifying[key] = self._capture(batch)
        self._verifying.move_to_end(key)
        graph, logits = self._verifying[key]
        graph.replay()
        return logits

    def _capture(self, batch: ForwardBatch) -> tuple[CpuGraph | torch.cuda.CUDAGraph, Tensor]:
        graph: CpuGraph | torch.cuda.CUDAGraph
        recording: AbstractContextManager[None]
        if self._decoder.device.type == "cuda":
            graph = torch.cuda.CUDAGraph()
            # On a stream of this device: torch's own is that of the first capture, whichever device it was on.
            recording = torch.cuda.graph(graph, stream=torch.cuda.Stream(self._decoder.device))  # type: ignore[no-untyped-call]
            self._decoder.forward(batch, self._caches)  # kernels are loaded when first run, not in a capture
            torch.cuda.synchronize(self._decoder.device)
        else:
            graph = recording = CpuGraph()
        with recording:
            logits = self._decoder.forward(batch, self._caches)
        return graph, logits
