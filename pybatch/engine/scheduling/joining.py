"""Waiting sequences that join those that run, if there is room for them or worse ones make it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from pybatch.engine.scheduling.block_pool import BlockKey
from pybatch.engine.scheduling.block_tables import BlockTables
from pybatch.engine.scheduling.forecast import Forecast
from pybatch.engine.scheduling.preemption import Preemption
from pybatch.engine.scheduling.promises import Promises
from pybatch.engine.scheduling.running import Running
from pybatch.engine.scheduling.sequence import Sequence
from pybatch.engine.scheduling.swap_space import SwapSpace
from pybatch.engine.scheduling.waiting_queue import WaitingQueue

_MOST_EXPECTED = 0.9  # of the pool, since outputs may turn out longer than expected
_SPARE_BLOCKS = 2  # per running sequence, which a sequence that passes another leaves free


@dataclass(frozen=True, slots=True)
class Refusal:
    """The first in the queue could not join. Trying again is of no use until this many blocks are free, the next block
    of its prefix is cached, or another sequence joins (which may put cached blocks to use that both share)."""

    sequence: Sequence
    blocks: int
    next_key: BlockKey | None


class Joining:
    """A waiting sequence without a place or blocks preempts running ones of worse priorities if it can join then, the
    worst first and of these that which wastes least.

    forecast: with it a sequence joins beside others only if the pool is expected to hold all of them until they end.
    Then hardly any is preempted.
    """

    def __init__(
        self,
        tables: BlockTables,
        running: Running,
        waiting: WaitingQueue,
        promises: Promises,
        preemption: Preemption,
        *,
        forecast: Forecast | None,
        swap_space: SwapSpace | None,
        clock: Callable[[], float],
    ) -> None:
        self._tables = tables
        self._pool = tables.pool
        self._running = running
        self._waiting = waiting
        self._promises = promises
        self._preemption = preemption
        self._forecast = forecast
        self._swap_space = swap_space
        self._clock = clock
        self._refusal: Refusal | None = None

    def join(self, sequence: Sequence, budget: int, *, passing: bool) -> bool:
        """Lets a waiting sequence run if there are blocks for all its tokens or, unless it passes another, a chunk.
        budget: of tokens, for the chunk. Returns whether it runs."""
        if not self._is_expected_to_fit(sequence):
            return False
        if passing:
            spared = (_SPARE_BLOCKS - 1) * len(self._running)
            if self._tables.blocks_for(len(sequence.tokens)) + spared > self._promises.num_spare:
                return False
        elif self._is_refused(sequence):
            return False
        free = self._pool.num_free
        self._tables.match(sequence)
        num_cached = len(sequence.blocks)
        swapped = len(sequence.host_blocks) > 0
        elsewhere = max(0, sequence.num_kept - sequence.num_computed) if swapped else self._tables.num_stored(sequence)
        count = min(sequence.num_due, elsewhere + budget)
        whole = passing or sequence.returning
        if not self._promises.give(sequence, count, whole=whole or self._running.short is not None):
            needed = self._promises.num_needed(sequence, count, whole=whole)
            next_key = sequence.keys[num_cached] if num_cached < len(sequence.keys) else None
            self._refusal = Refusal(sequence, free - self._pool.num_free + needed, next_key)
            self._tables.release(sequence, awaited=True)
            return False
        self._refusal = None
        if not (passing or self._waiting.num_returning):  # it was the first in the queue
            self._pool.await_none()
        self._tables.extend(sequence, self._tables.num_missing(sequence, elsewhere + 1))
        if swapped and self._swap_space is not None:
            self._swap_space.restore(sequence, self._tables.block_size)
        else:
            self._tables.load_prefix(sequence, elsewhere)
            self._tables.copy_beginning(sequence)
        self._running.join(sequence)
        metrics = sequence.request.metrics
        if metrics.first_scheduled_time is None:
            metrics.first_scheduled_time = self._clock()
            metrics.num_cached_tokens = sequence.num_computed
        return True

    def join_instead(self, sequence: Sequence, budget: int, *, passing: bool) -> bool:
        """Lets a waiting sequence run in the place of ones of worse priorities, if that gives it room."""
        needed = self._running.places_needed(sequence)
        while self._has_room_among_worse(sequence, passing=passing):
            self._preemption.preempt()
            if needed <= self._running.free_places and self.join(sequence, budget, passing=passing):
                return True
        return False

    def _is_expected_to_fit(self, sequence: Sequence) -> bool:
        """Whether the pool holds it and all that run until each has ended, as far as can be told. Not asked of one that
        runs alone, or before worse ones, which would give way."""
        if self._forecast is None or len(self._running) == 0 or self._running.num_worse(sequence.priority):
            return True
        size, shared = self._tables.block_size, self._pool.num_references - self._pool.num_used
        expected = self._forecast.peak_with(sequence) - shared * size
        return expected <= _MOST_EXPECTED * (self._pool.num_blocks - self._pool.num_pinned) * size

    def _has_room_among_worse(self, sequence: Sequence, *, passing: bool) -> bool:
        """Whether it could join, for all that is known of it, if no sequence of a worse priority ran."""
        if self._running.num_worse(sequence.priority) == 0:
            return False
        worse = [each for each in self._running if each.priority > sequence.priority]
        places = self._running.free_places + sum(map(self._running.places_needed, worse))
        if self._running.places_needed(sequence) > places:
            return False
        others = len(self._running) - len(worse)
        free = self._pool.num_free + self._pool.num_freed_by([each.blocks + each.held for each in worse])
        free -= self._tables.num_promised - sum([each.num_promised for each in worse])
        if passing:
            return self._tables.blocks_for(len(sequence.tokens)) + _SPARE_BLOCKS * others <= free
        refusal = self._refusal
        return refusal is None or refusal.sequence is not sequence or refusal.blocks + others <= free

    def _is_refused(self, sequence: Sequence) -> bool:
        refusal = self._refusal
        return (
            refusal is not None
            and refusal.sequence is sequence
            and refusal.blocks > self._promises.num_spare
            and not (refusal.next_key and self._pool.is_cached(refusal.next_key))
        )
