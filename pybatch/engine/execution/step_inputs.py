"""A step's batch as tensors, filled in place step after step."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain, repeat

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pybatch.engine.execution.upload import Mirror
from pybatch.engine.scheduling.sequence import NO_STATE, Sequence
from pybatch.engine.scheduling.step import Chunk, num_decodes
from pybatch.model.batch import ForwardBatch

NO_ADAPTER = -1  # in place of a slot

Integers = np.ndarray[tuple[int], np.dtype[np.int64]]


@dataclass(frozen=True, slots=True)
class Feed:
    """The last tokens of sequences, where the host does not know them yet. rows: of the step that they are for, whose
    first they are if it is None; sources: where they are in tokens."""

    tokens: Tensor
    count: int
    rows: Tensor | None = None
    sources: Tensor | None = None

    def write(self, token_ids: Tensor) -> None:
        """-1, which is no token, ends its sequence when it is known; until then any other stands for it."""
        if self.rows is None or self.sources is None:
            torch.clamp(self.tokens[: self.count], min=0, out=token_ids[: self.count])
        else:
            token_ids.index_copy_(0, self.rows, self.tokens[self.sources].clamp_(min=0))


class StepInputs:
    """A Mirror that never moves: graphs of all sizes record views of it, and a single copy takes a step to a GPU.

    A block table is written when a sequence gets a row. While the sequence decodes in that row, only new blocks are
    added, so blocks that are already known cost nothing.
    """

    def __init__(
        self,
        *,
        max_tokens: int,
        max_seqs: int,
        max_blocks: int,
        block_size: int,
        device: torch.device,
        adapters: bool = False,
        states: bool = False,
    ) -> None:
        """adapters: whether sequences may have some. states: whether the model has recurrent ones."""
        self._block_size = block_size
        self.adapters = adapters
        sequences_at = (5 if adapters else 4) * max_tokens  # in int64 words, as all of the memory is counted
        of_sequence = 4 if states else 2  # integers
        self._tables_at = sequences_at + of_sequence // 2 * (max_seqs + 1)
        self._table_words = max_blocks / 2
        words = self._tables_at + -(-max_seqs * max_blocks // 2)
        self._mirror = Mirror(words, device)

        def views(memory: Tensor) -> ForwardBatch:
            tokens = memory[: 4 * max_tokens].view(4, max_tokens)
            of_sequences = memory[sequences_at : self._tables_at].view(torch.int32).view(of_sequence, -1)
            chosen = memory[4 * max_tokens : sequences_at].view(torch.int32).view(2, -1) if adapters else None
            tables = memory[self._tables_at :].view(torch.int32)[: max_seqs * max_blocks]
            return ForwardBatch(
                token_ids=tokens[0],
                positions=tokens[1],
                slots=tokens[2],
                logits_rows=tokens[3],
                query_start=of_sequences[0],
                seq_lens=of_sequences[1],
                state_source=of_sequences[2] if states else None,
                state_destination=of_sequences[3] if states else None,
                block_tables=tables.view(max_seqs, max_blocks),
                adapters=None if chosen is None else chosen[0],
                last_adapters=None if chosen is None else chosen[1],
            )

        self._views = views(self._mirror.there)
        host = views(self._mirror.host)
        self._token_ids, self._positions = host.token_ids.numpy(), host.positions.numpy()
        self._slots, self._logits_rows = host.slots.numpy(), host.logits_rows.numpy()
        self._query_start, self._seq_lens = host.query_start.numpy(), host.seq_lens.numpy()
        self._tables = host.block_tables.numpy()
        self._state_source, self._state_destination = _numpy(host.state_source), _numpy(host.state_destination)
        self._adapters, self._last_adapters = _numpy(host.adapters), _numpy(host.last_adapters)
        self._every = np.arange(max_seqs + 1)
        self._filled: list[Chunk] = []  # row by row, what the block tables hold
        # By the number of sequences and whether some have adapters, since most steps only decode.
        self._decode_batches: dict[tuple[int, bool], ForwardBatch] = {}

    def fill(
        self, chunks: list[Chunk], size: int = 0, feed: Feed | None = None, *, adapted: bool | None = None
    ) -> ForwardBatch:
        """Copies a step to the device and returns its batch, as views. If all chunks decode, they are padded to `size`
        sequences; a padding row is a sequence of one token that is written to no slot. adapted: whether the batch says
        which adapters its tokens have; None: if one has some."""
        adapted = self.has_adapters(chunks) if adapted is None else adapted
        self._mirror.wait()
        count, decodes = len(chunks), _num_single(chunks)
        computed = np.array([chunk.sequence.num_computed for chunk in chunks], np.int64)
        pruned = np.array([chunk.sequence.num_pruned for chunk in chunks], np.int64)
        cached = computed - pruned
        places = np.divmod(cached, self._block_size)  # the block of each, and the place in it
        self._fill_tables(chunks, *places, longer=decodes)
        if self._state_source is not None and self._state_destination is not None:
            self._state_source[:count] = [chunk.sequence.state for chunk in chunks]
            self._state_destination[:count] = [chunk.sequence.next_state for chunk in chunks]
        self._token_ids[:decodes] = [chunk.sequence.tokens[-1] for chunk in chunks[:decodes]]
        self._logits_rows[:decodes] = self._every[:decodes]
        self._query_start[: decodes + 1] = self._every[: decodes + 1]
        total = rows = count
        owner, positions = self._every[:count], computed
        if decodes < count:
            lengths = np.ones(count, np.int64)
            lengths[decodes:] = [chunk.num_tokens for chunk in chunks[decodes:]]
            starts = self._query_start[: count + 1]
            lengths.cumsum(dtype=np.int32, out=starts[1:])
            total = int(starts[count])
            rows = self._fill_longer(chunks, decodes, starts)
            owner = np.repeat(owner, lengths)
            positions = np.arange(total) + (computed - starts[:-1])[owner]
            places = np.divmod(positions - pruned[owner], self._block_size)
            cached = cached + lengths - 1
        self._seq_lens[:count] = cached + 1
        if adapted:
            self._fill_adapters(chunks, owner, self._logits_rows[:rows])
        blocks = self._tables[owner, places[0]]
        self._positions[:total] = positions
        self._slots[:total] = blocks * np.int64(self._block_size) + places[1]

        if size > count:
            padding = slice(count, size)
            self._token_ids[padding] = self._positions[padding] = 0
            self._slots[padding] = -1
            self._seq_lens[padding] = 1
            if self._state_source is not None and self._state_destination is not None:
                self._state_source[padding] = self._state_destination[padding] = NO_STATE
            self._logits_rows[padding] = self._every[padding]
            self._query_start[count + 1 : size + 1] = self._every[count + 1 : size + 1]
            if self._adapters is not None and self._last_adapters is not None:
                self._adapters[padding] = self._last_adapters[padding] = NO_ADAPTER
            count = total = rows = size
        self._mirror.send(self._tables_at + int(count * self._table_words + 1))
        if feed is not None:
            feed.write(self._views.token_ids)
        if not total == count == rows:
            return self._batch(total, count, rows, adapted)
        key = count, adapted
        if key not in self._decode_batches:
            self._decode_batches[key] = self._batch(count, count, count, adapted)
        return self._decode_batches[key]

    def has_adapters(self, chunks: list[Chunk]) -> bool:
        return self.adapters and any(chunk.sequence.request.adapter is not None for chunk in chunks)

    def _fill_adapters(self, chunks: list[Chunk], owner: Integers, rows: Integers) -> None:
        """owner: of each token the chunk that it is in. rows: of logits."""
        assert self._adapters is not None
        assert self._last_adapters is not None
        slots = [_slot(chunk.sequence) for chunk in chunks]
        of_tokens = np.array(slots or [NO_ADAPTER], np.int32)[owner]
        self._adapters[: len(owner)] = of_tokens
        self._last_adapters[: len(rows)] = of_tokens[rows]

    def _batch(self, tokens: int, sequences: int, rows: int, adapted: bool) -> ForwardBatch:
        """The views of a step of that size."""
        views = self._views
        adapters, last_adapters = (views.adapters, views.last_adapters) if adapted else (None, None)
        source, destination = views.state_source, views.state_destination
        return ForwardBatch(
            token_ids=views.token_ids[:tokens],
            positions=views.positions[:tokens],
            slots=views.slots[:tokens],
            logits_rows=views.logits_rows[:rows],
            query_start=views.query_start[: sequences + 1],
            seq_lens=views.seq_lens[:sequences],
            state_source=None if source is None else source[:sequences],
            state_destination=None if destination is None else destination[:sequences],
            block_tables=views.block_tables[:sequences],
            adapters=None if adapters is None else adapters[:tokens],
            last_adapters=None if last_adapters is None else last_adapters[:rows],
        )

    def _fill_tables(self, chunks: list[Chunk], blocks: Integers, offsets: Integers, *, longer: int) -> None:
        filled, self._filled = self._filled, []
        if chunks != filled:
            for row, (chunk, before) in enumerate(zip(chunks, chain(filled, repeat(None)), strict=False)):
                if chunk is not before:
                    known = chunk.sequence.blocks
                    self._tables[row, : len(known)] = known
        if np.count_nonzero(offsets) < len(chunks):
            for row in np.flatnonzero(offsets == 0).tolist():
                self._tables[row, blocks[row]] = chunks[row].sequence.blocks[blocks[row]]
        for row, chunk in enumerate(chunks[longer:], longer):
            if chunk.drafts:  # their blocks may be others than those of drafts that proved wrong
                known, first = chunk.sequence.blocks, blocks[row]
                self._tables[row, first : len(known)] = known[first:]
        self._filled = chunks

    def _fill_longer(self, chunks: list[Chunk], first: int, starts: np.ndarray[tuple[int], np.dtype[np.int32]]) -> int:
        """Fills in the tokens of chunks[first:], prompts and such with drafts, and their rows of logits. Returns the
        number of all rows of logits."""
        rows = first
        for chunk, start in zip(chunks[first:], starts[first:-1].tolist(), strict=True):
            sequence, begin = chunk.sequence, chunk.sequence.num_computed
            end = begin + chunk.num_tokens
            known = sequence.tokens[begin:end]
            self._token_ids[start : start + len(known)] = known
            self._token_ids[start + len(known) : start + chunk.num_tokens] = chunk.drafts
            for position in logit_positions(sequence, begin, end):
                self._logits_rows[rows] = start + position - begin
                rows += 1
        return rows


def _numpy(tensor: Tensor | None) -> npt.NDArray[np.int32] | None:
    return None if tensor is None else tensor.numpy()


def _slot(sequence: Sequence) -> int:
    adapter = sequence.request.adapter
    if adapter is None:
        return NO_ADAPTER
    assert adapter.slot is not None  # as long as it has unfinished requests
    return adapter.slot


def _num_single(chunks: list[Chunk]) -> int:
    """The number of chunks before the first that may have more than one token."""
    count = num_decodes(chunks)
    return next((row for row in range(count) if chunks[row].drafts), count)


def logit_positions(sequence: Sequence, begin: int, end: int) -> range:
    """The positions in [begin, end) whose logits are needed: the last known token's, and the prompt's if its
    log-probabilities are still to be reported (there is no output yet then). Drafts come after the last known one."""
    if sequence.request.pooled is not None:
        return range(0)
    first = len(sequence.tokens) - 1
    reported = sequence.request.prompt_logprobs
    if reported is not None and len(reported) < len(sequence.request.prompt_token_ids):
        first = len(reported) - 1  # position i tells of token i + 1, and entry 0 is of no position
    return range(max(first, begin), end)


def pooled_positions(sequence: Sequence, begin: int, end: int) -> range:
    """The positions in [begin, end) whose hidden states are needed."""
    pooled = sequence.request.pooled
    return range(0) if pooled is None else range(max(pooled.first_wanted(len(sequence.tokens)), begin), end)
