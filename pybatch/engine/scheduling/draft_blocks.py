"""Blocks for drafts: of tokens that may follow those of the sequences that decode."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice

from pybatch.engine.scheduling.block_tables import BlockTables
from pybatch.engine.scheduling.promises import Promises
from pybatch.engine.scheduling.running import Running
from pybatch.engine.scheduling.sequence import Status
from pybatch.engine.scheduling.step import Chunk


class DraftBlocks:
    """Drafts have what is neither promised nor needed for the next token of anyone who runs."""

    def __init__(self, tables: BlockTables, running: Running, promises: Promises) -> None:
        self._tables = tables
        self._running = running
        self._promises = promises

    def add(self, chunk: Chunk, drafts: Iterable[int]) -> None:
        """Lets a chunk that decodes compute drafts of the next tokens too: as many as have room in the blocks that are
        free beyond one for each running sequence, so that nobody is preempted for them, before the next pruning."""
        sequence = chunk.sequence
        blocks = len(sequence.blocks) + max(0, self._promises.num_spare)
        room = min(
            blocks * self._tables.block_size - sequence.num_cached, sequence.next_pruning - sequence.num_computed
        )
        taken = () if sequence.mass_rows else tuple(islice(drafts, room - 1))
        self._tables.extend(sequence, self._tables.num_missing(sequence, 1 + len(taken)))
        chunk.drafts, chunk.num_tokens = taken, 1 + len(taken)

    def settle(self, chunk: Chunk) -> None:
        """To be called when the drafts that proved right are tokens of the sequence, and counted in num_computed:
        returns the blocks that were for the others."""
        chunk.drafts, chunk.num_tokens = (), 1
        sequence = chunk.sequence
        if sequence.status is Status.RUNNING:
            self._running.replan(sequence)
            self._tables.trim(sequence)
