"""Turns the scheduler's chunks into one batch of tensors and runs the model on it."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from pybatch.engine.execution.decode_graphs import DecodeGraphs
from pybatch.engine.execution.kv_cache import KvCache
from pybatch.engine.scheduling.scheduler import Chunk
from pybatch.engine.scheduling.sequence import Sequence
from pybatch.model.batch import ForwardBatch
from pybatch.model.decoder import Decoder


class ModelRunner:
    """Builds batches in buffers of its own: what it returns is valid until its next call."""

    def __init__(
        self, decoder: Decoder, kv_cache: KvCache, *, block_size: int, max_tokens: int, max_seqs: int, max_blocks: int
    ) -> None:
        self._decoder = decoder
        self._kv_cache = kv_cache
        self._block_size = block_size
        self._token_ids = np.empty(max_tokens, np.int64)
        self._block_tables = np.empty(max_seqs * max_blocks, np.int32)
        self._graphs = DecodeGraphs(decoder, kv_cache, block_size=block_size, max_seqs=max_seqs, max_blocks=max_blocks)

    def run(self, chunks: list[Chunk]) -> Tensor:
        """One forward pass. Returns logits, [L, vocab] float32: of each chunk in turn the rows of logits_rows."""
        if self._graphs.takes(chunks):
            return self._graphs.run(chunks)
        return self._decoder.forward(self.build(chunks).to(self._decoder.device), self._kv_cache.layers)

    def build(self, chunks: list[Chunk]) -> ForwardBatch:
        count = len(chunks)
        lengths = np.fromiter((chunk.num_tokens for chunk in chunks), np.int64, count)
        computed = np.fromiter((chunk.sequence.num_computed for chunk in chunks), np.int64, count)
        starts = np.zeros(count + 1, np.int64)
        np.cumsum(lengths, out=starts[1:])
        begins = starts.tolist()
        total = begins[-1]

        width = max(len(chunk.sequence.blocks) for chunk in chunks)
        tables = self._block_tables[: count * width].reshape(count, width)
        token_ids = self._token_ids[:total]
        rows: list[int] = []
        for i, chunk in enumerate(chunks):
            sequence, begin, start = chunk.sequence, chunk.sequence.num_computed, begins[i]
            blocks = np.frombuffer(sequence.blocks, np.int32)
            tables[i, : len(blocks)] = blocks
            tables[i, len(blocks) :] = 0
            end = begin + chunk.num_tokens
            token_ids[start : begins[i + 1]] = np.frombuffer(sequence.tokens, np.int64)[begin:end]
            rows.extend(start + position - begin for position in logit_positions(sequence, begin, end))

        owner = np.repeat(np.arange(count), lengths)
        positions = np.arange(total) + (computed - starts[:-1])[owner]
        slots = tables[owner, positions // self._block_size] * np.int64(self._block_size) + positions % self._block_size
        return ForwardBatch(
            token_ids=torch.from_numpy(token_ids),
            positions=torch.from_numpy(positions),
            slots=torch.from_numpy(slots),
            block_tables=torch.from_numpy(tables),
            query_start=torch.from_numpy(starts.astype(np.int32)),
            seq_lens=torch.from_numpy((computed + lengths).astype(np.int32)),
            logits_rows=torch.tensor(rows, dtype=torch.int64),
        )


def logit_positions(sequence: Sequence, begin: int, end: int) -> range:
    """The positions in [begin, end) whose logits are wanted: the last known token's, and the prompt's where its
    log-probabilities are still to be reported (there is no output yet then)."""
    first = len(sequence.tokens) - 1
    reported = sequence.request.prompt_logprobs
    if reported is not None and len(reported) < len(sequence.request.prompt_token_ids):
        first = len(reported) - 1  # position i tells of token i + 1, and entry 0 is of no position
    return range(max(first, begin), end)
