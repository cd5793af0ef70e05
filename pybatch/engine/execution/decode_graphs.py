"""Decode steps as replays of recorded graphs: one call instead of hundreds."""

from __future__ import annotations

from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Callable, Sequence
from copy import copy

from torch import Tensor

from pybatch.engine.execution.graphs import Graph, recorder_for
from pybatch.engine.execution.step_inputs import Feed, StepInputs
from pybatch.engine.scheduling.step import Chunk, num_decodes
from pybatch.model.batch import AnyCache, ForwardBatch
from pybatch.model.decoder import Decoder

_VERIFYING_TOKENS = 128  # of steps with drafts: for more, what a graph saves is little beside the kernels
_VERIFYING_GRAPHS = 64  # that are kept, those that were used last


class DecodeGraphs:
    """Runs batches of one token per sequence in graphs of a few sizes, each padded to the next. No row's bits depend on
    other rows, so a replay gives the same bits as an eager step. Batches beyond the largest size are not taken.

    On a GPU all graphs are recorded by record_all. On a CPU, where that is quick, each is when a batch of its size
    first comes, and batches with drafts run in graphs too, by the numbers of sequences and tokens.
    """

    def __init__(
        self,
        decoder: Decoder,
        caches: Sequence[AnyCache],
        inputs: StepInputs,
        *,
        max_seqs: int,
        max_tokens: int,
    ) -> None:
        """max_tokens: of a step with drafts; max_seqs if there are none."""
        self._recorder = recorder_for(decoder.device)
        self._sizes = self._recorder.sizes(max_seqs)
        self._max_tokens = self._sizes[-1]
        if not self._recorder.at_start:
            self._max_tokens = max(max_seqs, min(max_tokens, _VERIFYING_TOKENS))
        self._decoder = copy(decoder)
        self._decoder.make_buffers(self._max_tokens)  # of its own, which never move: their addresses are in the graphs
        self._caches = caches
        self._inputs = inputs
        # By the number of sequences, of tokens where there are drafts, and whether some have adapters.
        self._graphs: dict[tuple[int, bool], tuple[Graph, Tensor]] = {}
        self._verifying: OrderedDict[tuple[int, int, bool], tuple[Graph, Tensor]] = OrderedDict()

    @property
    def num_at_start(self) -> int:
        """How many graphs record_all records."""
        return len(self._sizes) * len(self._kinds) if self._recorder.at_start else 0

    @property
    def _kinds(self) -> tuple[bool, ...]:
        """Of graphs: without adapters, and with."""
        return (False, True) if self._inputs.adapters else (False,)

    def record_all(self, advance: Callable[[int], None]) -> None:
        """Of batches that are all padding; the largest first, in whose memory the others find room."""
        for size in reversed(self._sizes if self._recorder.at_start else []):
            for adapted in self._kinds:
                self._graphs[size, adapted] = self._record(self._inputs.fill([], size, adapted=adapted))
                advance(1)

    def takes(self, chunks: list[Chunk]) -> bool:
        if num_decodes(chunks) < len(chunks):
            return False
        tokens = sum([chunk.num_tokens for chunk in chunks])
        if tokens == len(chunks):
            return tokens <= self._sizes[-1]
        return not self._recorder.at_start and tokens <= self._max_tokens

    def run(self, chunks: list[Chunk], feed: Feed | None = None) -> Tensor:
        """The logits, [T, vocab] float32, valid until the next call."""
        if any(chunk.drafts for chunk in chunks):
            return self._verify(chunks)
        size = self._sizes[bisect_left(self._sizes, len(chunks))]
        batch = self._inputs.fill(chunks, size, feed)
        key = size, batch.adapters is not None
        if key not in self._graphs:
            self._graphs[key] = self._record(batch)
        graph, logits = self._graphs[key]
        graph.replay()
        return logits[: len(chunks)]

    def _verify(self, chunks: list[Chunk]) -> Tensor:
        batch = self._inputs.fill(chunks)
        key = len(chunks), len(batch.token_ids), batch.adapters is not None
        if key not in self._verifying:
            if len(self._verifying) == _VERIFYING_GRAPHS:
                self._verifying.popitem(last=False)
            self._verifying[key] = self._record(batch)
        self._verifying.move_to_end(key)
        graph, logits = self._verifying[key]
        graph.replay()
        return logits

    def _record(self, batch: ForwardBatch) -> tuple[Graph, Tensor]:
        return self._recorder.record(lambda: self._decoder.forward(batch, self._caches))
