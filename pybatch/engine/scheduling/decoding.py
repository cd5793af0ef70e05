"""The sequences that decode in a step, and the blocks for their next tokens."""

from __future__ import annotations

from pybatch.engine.scheduling.block_tables import BlockTables
from pybatch.engine.scheduling.fair_queue import OUTPUT_WEIGHT
from pybatch.engine.scheduling.preemption import Preemption
from pybatch.engine.scheduling.running import Running
from pybatch.engine.scheduling.sequence import Sequence, Status
from pybatch.engine.scheduling.waiting_queue import WaitingQueue


class Decoding:
    """Sequences with one token left to compute are in every step, before any prompt. If there is no block for one,
    another is preempted (see Preemption)."""

    def __init__(self, tables: BlockTables, running: Running, waiting: WaitingQueue, preemption: Preemption) -> None:
        self._tables = tables
        self._running = running
        self._waiting = waiting
        self._preemption = preemption

    def begin(self) -> None:
        """Takes in those whose prompts have been computed."""
        prefills = self._running.prefills
        for sequence in [s for s in prefills if s.request.forked and s.num_output and self._can_decode(s)]:
            self._tables.promise(sequence, 0)
            self._running.decode(sequence)

    def grow(self) -> int | None:
        """Gives them the blocks that they need. Returns the best priority that was preempted for it."""
        size, pool = self._tables.block_size, self._tables.pool
        preempted: int | None = None
        due = self._running.turns.due(self._running.now)
        if self._waiting.has_users:
            for sequence in due:
                self._waiting.charge(sequence, OUTPUT_WEIGHT * size)
        lacking = [each for each in due if len(each.blocks) * size == each.num_cached]
        if len(lacking) <= pool.num_free:
            for sequence, block in zip(lacking, pool.allocate_many(len(lacking)), strict=True):
                sequence.blocks.append(block)
            return None
        for sequence in lacking:
            self._running.at = sequence
            while sequence.status is Status.RUNNING and len(sequence.blocks) * size == sequence.num_cached:
                if pool.num_free:
                    sequence.blocks.append(pool.allocate())
                else:
                    preempted = self._preemption.preempt().priority  # never a worse one than before
        return preempted

    @staticmethod
    def _can_decode(sequence: Sequence) -> bool:
        """Beams decode again when each has but its last token left."""
        together = [sequence] if sequence.request.beams is None else sequence.request.sequences
        return all(each.num_pending == 1 for each in together)
