"""How many sequences may join the batch in this step, and which: a policy at work. All else is up to the one scheduler.

The scheduler asks before each step, with the same few facts, and tells how many joined. Preempted sequences return to
the batch without being counted.

Who these sequences are is the scheduler's matter, and so priorities are: the best of those that wait are the first to
join. A policy that holds all back holds back better ones too. With static and dynamic a better sequence that comes
while a batch runs waits for the next, and with micro for the next group; there it may take the place and the blocks of
a worse one. Only continuous bounds how long an interactive request waits for the rows of batches.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from pybatch.engine.scheduling.policies import Dynamic, Micro, Policy, Static


@dataclass(frozen=True, slots=True)
class Load:
    """What is decided by: numbers of sequences.

    prefilling: of the running ones. waiting: those that have not run yet. returning: those that wait to run again.
    first_length: in tokens, of the one whose turn it is. longest_wait: seconds since the first of those that have not
    run yet arrived. queued: all that have come so far.
    """

    running: int
    prefilling: int
    waiting: int
    returning: int
    first_length: int
    longest_wait: float
    queued: int
    max_num_seqs: int


class Admission:
    """Continuous: sequences join as soon as there is room."""

    last: float = math.inf
    """Of sequences counted as they come, the last that may join for the first time."""

    by_length: bool = False
    length: int | None = None
    """In tokens: of those that may join, the most nearly as long come first. None (always, unless by_length): in the
    queue's order."""

    def open_places(self, load: Load) -> int:
        """Returns the most sequences that may join in this step for the first time."""
        return load.max_num_seqs

    def joined(self, count: int, *, full: bool) -> None:
        """`count` of them joined. full: another one could not, because it lacked KV blocks or a place (and not because
        the step had no tokens left)."""


class StaticAdmission(Admission):
    """It may take several steps until all of a batch have joined; the place of one that is aborted meanwhile stays
    empty rather than go to one that came later."""

    def __init__(self, size: int | None, *, by_length: bool = False) -> None:
        self._size, self.by_length = size, by_length
        self._open = 0

    def open_places(self, load: Load) -> int:
        if load.running + load.returning == 0 and self._may_start(load):
            self._open, self.last = min(load.waiting, self._most(load)), load.queued
            self.length = load.first_length if self.by_length else None
        return self._open

    def joined(self, count: int, *, full: bool) -> None:
        self._open = 0 if full else self._open - count

    def _most(self, load: Load) -> int:
        return self._size or load.max_num_seqs

    def _may_start(self, load: Load) -> bool:
        return True


class DynamicAdmission(StaticAdmission):
    def __init__(self, size: int | None, max_wait: float) -> None:
        super().__init__(size)
        self._max_wait = max_wait

    def _may_start(self, load: Load) -> bool:
        return load.waiting >= self._most(load) or load.longest_wait >= self._max_wait


class MicroAdmission(StaticAdmission):
    """The place of one that is aborted is the next one's."""

    def open_places(self, load: Load) -> int:
        if self._open == 0 and load.prefilling == 0:
            self._open = min(load.waiting, self._size or math.ceil(load.max_num_seqs / 4))
        return self._open


def admission(policy: Policy) -> Admission:
    """A policy at its beginning."""
    match policy:
        case Static(batch_size, by_length):
            return StaticAdmission(batch_size, by_length=by_length)
        case Dynamic(max_batch, max_wait):
            return DynamicAdmission(max_batch, max_wait)
        case Micro(micro_batch):
            return MicroAdmission(micro_batch)
    return Admission()
