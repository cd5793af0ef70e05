"""The blocks of prompts: promised when these join, taken chunk by chunk."""

from __future__ import annotations

from pybatch.engine.scheduling.block_tables import BlockTables
from pybatch.engine.scheduling.preemption import Preemption
from pybatch.engine.scheduling.running import Running
from pybatch.engine.scheduling.sequence import Sequence


class Promises:
    """A prompt takes its blocks chunk by chunk. It joins when there is room for all its known tokens: the blocks for
    these are promised to it, so that nobody joins who would need them, and stay free or cached until it takes them.
    Sequences that decode may take them before: then it waits for others to end.

    A prompt that needs more than is free joins without a promise, and takes what is beyond all promises and a reserve;
    one such prompt runs at a time, Running.short.
    """

    def __init__(self, tables: BlockTables, running: Running, preemption: Preemption) -> None:
        self._tables = tables
        self._running = running
        self._preemption = preemption
        self._reserve = tables.pool.num_blocks // 8  # blocks that a prompt without a promise leaves

    @property
    def num_spare(self) -> int:
        """The blocks that may be promised, and one more for each running sequence is left: else the next one to need a
        block would preempt another at once."""
        return self._tables.pool.num_free - self._tables.num_promised - len(self._running)

    def num_needed(self, sequence: Sequence, count: int, *, whole: bool) -> int:
        """How many blocks must be spare before a sequence that waits can join. count, whole: as give's."""
        missing = self._num_missing(sequence)
        return missing if whole else min(missing, self._tables.num_missing(sequence, count) + self._reserve)

    def give(self, sequence: Sequence, count: int, *, whole: bool = False) -> bool:
        """Promises a sequence the blocks for all its known tokens before its next pruning. If these are too many and
        `whole` is false it may have those for its next `count` tokens without a promise, if these are free. Returns
        whether it has either."""
        spare = self.num_spare + (sequence is self._running.short)
        missing = self._num_missing(sequence)
        if missing <= spare:
            self._tables.promise(sequence, missing)
            self._running.end_short(sequence)
            return True
        if whole or self._tables.num_missing(sequence, count) > spare - self._reserve:
            return False
        self._running.short = sequence
        return True

    def take(self, sequence: Sequence, count: int) -> bool:
        """Gives a prompt the blocks for its next `count` tokens, if need be those of running sequences of worse
        priorities. Returns whether it has them."""
        while not self._may_take(sequence, count):
            if self._running.num_worse(sequence.priority) == 0:
                return False
            self._preemption.preempt()
        self._tables.extend(sequence, self._tables.num_missing(sequence, count))
        return True

    def _may_take(self, sequence: Sequence, count: int) -> bool:
        if sequence is self._running.short and not self.give(sequence, count):
            return False
        return self._tables.num_missing(sequence, count) <= self._tables.pool.num_free

    def _num_missing(self, sequence: Sequence) -> int:
        """How many blocks one without a promise lacks, with the beams that wait for it."""
        missing, request = self._tables.num_missing(sequence, sequence.num_due), sequence.request
        if request.is_gathered:
            shared = request.num_shared // self._tables.block_size
            missing += sum([self._tables.blocks_for(len(beam.tokens) - 1) - shared for beam in request.sequences[1:]])
        return missing
