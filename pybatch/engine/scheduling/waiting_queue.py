"""The sequences that wait to run, in the order in which they are to."""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping

from pybatch.engine.scheduling.block_pool import IntegrityError
from pybatch.engine.scheduling.fair_queue import NO_WEIGHTS, FairQueue
from pybatch.engine.scheduling.sequence import Sequence


class ByLength:
    """Sequences by the lengths of their prompts: those that differ by a tenth are equal, and in order of arrival."""

    __slots__ = ("_groups", "_lengths")

    def __init__(self) -> None:
        self._groups: dict[int, OrderedDict[Sequence, None]] = {}
        self._lengths: list[int] = []  # of _groups, sorted: few, since they are logarithms

    def add(self, sequence: Sequence) -> None:
        length = _scale(len(sequence.tokens))
        if length not in self._groups:
            self._groups[length] = OrderedDict()
            insort(self._lengths, length)
        self._groups[length][sequence] = None

    def remove(self, sequence: Sequence) -> None:
        length = _scale(len(sequence.tokens))
        group = self._groups[length]
        del group[sequence]
        if not group:
            del self._groups[length], self._lengths[bisect_left(self._lengths, length)]

    def nearest(self, length: int) -> Iterator[Sequence]:
        """All of them, the most nearly as long first."""
        at = _scale(length)
        for each in sorted(self._lengths, key=lambda length: (abs(length - at), length)):
            yield from self._groups[each]


def _scale(length: int) -> int:
    return round(7 * math.log2(length))


class PriorityClass:
    """Those of one priority: the ones that have run before come first."""

    __slots__ = ("by_length", "newcomers", "returning")

    def __init__(self, weights: Mapping[str, float]) -> None:
        self.returning: OrderedDict[Sequence, None] = OrderedDict()
        self.newcomers = FairQueue[Sequence](weights)
        self.by_length = ByLength()

    def in_order(self, length: int | None) -> Iterable[Sequence]:
        """The newcomers, those most nearly as long first where a length is given."""
        return self.newcomers if length is None else self.by_length.nearest(length)


class WaitingQueue:
    """Better priorities first; of one priority those that wait to return, then the others in the order of FairQueue:
    fair to users, of one user the earliest deadline first, and of equal ones in order of arrival.

    by_length: whether candidates are asked for by length. weights: of users, as FairQueue has them. Nothing that it
    does takes longer the longer it is.
    """

    def __init__(self, *, by_length: bool = False, weights: Mapping[str, float] = NO_WEIGHTS) -> None:
        self._by_length, self._weights = by_length, weights
        self.num_returning = 0
        self.num_queued = 0  # all that have come so far
        self.has_users = False  # whether any of them had one
        self._newcomers: OrderedDict[Sequence, None] = OrderedDict()  # of all priorities, in order of arrival
        self._classes: dict[int, PriorityClass] = {}
        self._priorities: list[int] = []  # of _classes, sorted

    def __len__(self) -> int:
        return len(self._newcomers) + self.num_returning

    def __contains__(self, sequence: Sequence) -> bool:
        found = self._classes.get(sequence.priority)
        return found is not None and (sequence in found.newcomers or sequence in found.returning)

    def __iter__(self) -> Iterator[Sequence]:
        for priority in self._priorities:
            yield from self._classes[priority].returning
            yield from self._classes[priority].newcomers

    @property
    def best(self) -> int:
        """The priority of the first; there must be one."""
        return self._priorities[0]

    @property
    def oldest(self) -> Sequence:
        """The one that came first of those that have not run yet, or else the first."""
        return next(iter(self._newcomers or self))

    @property
    def first(self) -> Sequence:
        """There must be one."""
        return next(iter(self))

    def add(self, sequence: Sequence) -> None:
        sequence.queued = self.num_queued = self.num_queued + 1
        self.has_users = self.has_users or sequence.user is not None
        self._newcomers[sequence] = None
        found = self._class_of(sequence)
        found.newcomers.add(sequence)
        if self._by_length:
            found.by_length.add(sequence)

    def put_back(self, sequence: Sequence) -> None:
        """In front of its priority, to run again."""
        sequence.returning = True
        self.num_returning += 1
        returning = self._class_of(sequence).returning
        returning[sequence] = None
        returning.move_to_end(sequence, last=False)

    def remove(self, sequence: Sequence) -> None:
        priority = sequence.priority
        found = self._classes[priority]
        if sequence.returning:
            sequence.returning = False
            self.num_returning -= 1
            del found.returning[sequence]
        else:
            del self._newcomers[sequence]
            found.newcomers.remove(sequence)
            if self._by_length:
                found.by_length.remove(sequence)
        if not (found.newcomers or found.returning):
            del self._classes[priority], self._priorities[bisect_left(self._priorities, priority)]

    def charge(self, sequence: Sequence, tokens: float) -> None:
        """Its user has been served so much while others of the same priority waited."""
        found = self._classes.get(sequence.priority)
        if found is not None:
            found.newcomers.charge(sequence.user, tokens)

    def candidates(self, *, below: float, newcomers: int, last: float, length: int | None = None) -> Iterator[Sequence]:
        """Those of a priority below `below` that may join: all that return, and the first so many newcomers of those
        that were queued up to the `last`. length: in tokens; of one priority the newcomers most nearly as long are
        first."""
        returning = self.num_returning
        for priority in self._priorities:
            if priority >= below or not (returning or newcomers):
                return
            found = self._classes[priority]
            returning -= len(found.returning)
            yield from found.returning
            for sequence in found.in_order(length):
                if newcomers == 0:
                    break
                if sequence.queued <= last:
                    newcomers -= 1
                    yield sequence

    def check_integrity(self) -> None:
        """Raises IntegrityError unless the parts agree."""
        returning = [sequence for each in self._classes.values() for sequence in each.returning]
        newcomers = [sequence for each in self._classes.values() for sequence in each.newcomers]
        if self.num_returning != len(returning) or not all(sequence.returning for sequence in returning):
            raise IntegrityError("the number of sequences that wait to return is wrong")
        if set(newcomers) != self._newcomers.keys() or any(sequence.returning for sequence in newcomers):
            raise IntegrityError("the sequences that have not run yet are not those that wait by priority")
        if self._by_length and any(
            {*each.by_length.nearest(1)} != {*each.newcomers} for each in self._classes.values()
        ):
            raise IntegrityError("the sequences by length are not those that have not run yet")
        if self._priorities != sorted(self._classes) or not all(
            each.returning or each.newcomers for each in self._classes.values()
        ):
            raise IntegrityError("the priorities of the sequences that wait are wrong")

    def _class_of(self, sequence: Sequence) -> PriorityClass:
        found = self._classes.get(sequence.priority)
        if found is None:
            found = self._classes[sequence.priority] = PriorityClass(self._weights)
            insort(self._priorities, sequence.priority)
        return found
