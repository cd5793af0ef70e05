"""The sequences that wait to run, in the order in which they are to."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import OrderedDict
from collections.abc import Iterator
from itertools import islice

from pybatch.engine.scheduling.block_pool import IntegrityError
from pybatch.engine.scheduling.sequence import Sequence


class PriorityClass:
    """Those of one priority: the ones that have run before come first."""

    __slots__ = ("newcomers", "returning")

    def __init__(self) -> None:
        self.returning: OrderedDict[Sequence, None] = OrderedDict()
        self.newcomers: OrderedDict[Sequence, None] = OrderedDict()


class WaitingQueue:
    """Better priorities first; of one priority those that wait to return, then the others in order of arrival.

    Nothing that it does takes longer the longer it is.
    """

    def __init__(self) -> None:
        self.num_returning = 0
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

    def add(self, sequence: Sequence) -> None:
        self._newcomers[sequence] = None
        self._class_of(sequence).newcomers[sequence] = None

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
            del self._newcomers[sequence], found.newcomers[sequence]
        if not (found.newcomers or found.returning):
            del self._classes[priority], self._priorities[bisect_left(self._priorities, priority)]

    def candidates(self, *, below: float, newcomers: int, last: float) -> Iterator[Sequence]:
        """Those of a priority below `below` that may join: all that return, and the first so many newcomers of those
        that were queued up to the `last`."""
        returning = self.num_returning
        for priority in self._priorities:
            if priority >= below or not (returning or newcomers):
                return
            found = self._classes[priority]
            returning -= len(found.returning)
            yield from found.returning
            for sequence in islice(found.newcomers, newcomers):
                if sequence.queued > last:
                    break
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
        if self._priorities != sorted(self._classes) or not all(
            each.returning or each.newcomers for each in self._classes.values()
        ):
            raise IntegrityError("the priorities of the sequences that wait are wrong")

    def _class_of(self, sequence: Sequence) -> PriorityClass:
        found = self._classes.get(sequence.priority)
        if found is None:
            found = self._classes[sequence.priority] = PriorityClass()
            insort(self._priorities, sequence.priority)
        return found
