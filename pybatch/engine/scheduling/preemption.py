"""Running sequences that go back to the queue, for others to have their blocks and places."""

from __future__ import annotations

from collections.abc import Callable

from pybatch.engine.scheduling.block_tables import BlockTables
from pybatch.engine.scheduling.running import Running
from pybatch.engine.scheduling.sequence import Request, Sequence, Status
from pybatch.engine.scheduling.swap_space import SwapSpace
from pybatch.engine.scheduling.waiting_queue import WaitingQueue


class Preemption:
    """If a sequence that decodes needs a block and none is free, one of the worst priority is preempted, that which
    wastes least: it returns its blocks and goes to the front of its priority's queue, to be recomputed.

    Nobody waits for ever: of those that need a block in a step, the last that still runs has it and gets a token, which
    no later preemption takes back (a sequence keeps its tokens, and loses what was computed of them). So each step in
    which others are preempted for want of blocks brings a token, and all outputs together are bounded. A sequence that
    is preempted for itself takes nobody's blocks. What joins again is promised room for all its known tokens, and so it
    gets one more unless it makes way for another's. Prompts do not wait for each other: what they hold and were
    promised fits in the pool, but for what sequences that decode have taken since. So every sequence ends unless better
    ones never cease.

    The beams of a request are preempted together, and wait as one.
    """

    def __init__(
        self,
        tables: BlockTables,
        running: Running,
        waiting: WaitingQueue,
        swap_space: SwapSpace | None,
        clock: Callable[[], float],
    ) -> None:
        self.count = 0  # so far; beams that are preempted together count once
        self._tables = tables
        self._running = running
        self._waiting = waiting
        self._swap_space = swap_space
        self._clock = clock

    def preempt(self, *, moves: bool = True) -> Sequence:
        """Preempts the running sequence of which that costs least, and returns it. moves: what its blocks hold may be
        moved to the host: they are not written before the next step."""
        victim = min(self._running, key=lambda each: (-each.priority, *self._tables.waste(each), -each.joined))
        at = self._running.at
        for self._running.at in [victim] if victim.request.beams is None else victim.request.sequences:
            self._tables.register_filled(self._running.at)
        self._running.at = at
        moves = moves and victim.request.beams is None and not self._tables.awaits_copy(victim)
        if self._swap_space is not None and moves:
            self._swap_space.keep(victim, self._tables.block_size)
        self.requeue(victim)
        victim.request.metrics.num_preemptions += 1
        self.count += 1
        return victim

    def free_for(self, sequence: Sequence, num_needed: Callable[[], int]) -> bool:
        """Preempts others until as many blocks are free as a sequence needs, which may become fewer as others do not
        share its own any more. Returns whether it still runs itself."""
        while self._tables.pool.num_free < num_needed():
            if self.preempt(moves=False) is sequence:
                return False
        return True

    def withdraw(self, request: Request) -> bool:
        """Takes a request's beams out of the queue if they wait there as one. Returns whether they did; then they are
        to be requeued."""
        first = request.sequences[0]
        if first.status is not Status.WAITING:
            return False
        self._waiting.remove(first)
        return True

    def requeue(self, sequence: Sequence) -> None:
        """Has a sequence wait to be recomputed, and with a beam all of its request's."""
        request = sequence.request
        together = [sequence] if request.beams is None else request.sequences
        for each in together:
            if each.status is Status.RUNNING:
                self._running.stop(each)
            self._tables.release(each, awaited=True)
            each.status = Status.WAITING
        if request.beams is not None:
            request.gather(self._tables.block_size)
        together[0].paused = self._clock()
        self._waiting.put_back(together[0])
