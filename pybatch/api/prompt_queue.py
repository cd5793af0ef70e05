"""Prompts on their way to the tokeniser."""

from __future__ import annotations

import itertools
import threading
from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Mapping
from typing import Generic, Protocol, TypeVar

from pybatch.engine.scheduling.fair_queue import FairQueue, Queued, UserQueue


class Prompted(Queued, Protocol):
    """queued: set when it is put here."""

    queued: int

    @property
    def priority(self) -> int: ...


T = TypeVar("T", bound=Prompted)
Kind = tuple[int, str | None, bool]
"""Of a prompt: its priority, its user, and whether it is urgent."""


class PromptQueue(Generic[T]):
    """Gives prompts out as the engine's own queue would: better priorities first, fair to users by the sizes of
    prompts, of one user the earliest deadline first. Of any thread.

    places: how many of a kind may be out at a time; the others are not tokenised before these have left. So nobody's
    prompts wait behind ten thousand of another's, here or in the engine. weights: of users, as FairQueue has them.
    """

    def __init__(self, places: int, weights: Mapping[str, float]) -> None:
        self._most, self._weights = places, weights
        self._placed: set[T] = set()  # those that are out, or next
        self._counts = Counter[Kind]()  # of these
        self._next: dict[int, FairQueue[T]] = {}  # by priority
        self._priorities: list[int] = []  # of _next, sorted
        self._later: dict[Kind, UserQueue[T]] = {}
        self._numbers = itertools.count(1)
        self._changed = threading.Condition()
        self._closed = False

    def put(self, item: T) -> None:
        with self._changed:
            item.queued = next(self._numbers)
            if self._counts[_kind(item)] < self._most:
                self._place(item)
            else:
                self._later.setdefault(_kind(item), UserQueue()).add(item)

    def take(self, *, wait: bool = True) -> T | None:
        """The next one. None if there is none, and it does not wait for one, or once this is closed."""
        with self._changed:
            while wait and not (self._priorities or self._closed):
                self._changed.wait()
            if self._closed or not self._priorities:
                return None
            found = self._next[self._priorities[0]]
            item = next(iter(found))
            found.charge(item.user, item.size)
            self._remove_next(item)
            return item

    def withdraw(self, item: T) -> None:
        """It is not to come out any more. Does nothing if it has."""
        with self._changed:
            later = self._later.get(_kind(item))
            if later is not None and item in later:
                self._remove_later(item)
            elif item.priority in self._next and item in self._next[item.priority]:
                self._remove_next(item)
                self._free(item)

    def leave(self, item: T) -> None:
        """It has ended, wherever it was after it came out: another may have its place."""
        with self._changed:
            if item in self._placed:
                self._free(item)

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _place(self, item: T) -> None:
        self._placed.add(item)
        self._counts[_kind(item)] += 1
        found = self._next.get(item.priority)
        if found is None:
            found = self._next[item.priority] = FairQueue(self._weights)
            insort(self._priorities, item.priority)
        found.add(item)
        self._changed.notify()

    def _free(self, item: T) -> None:
        kind = _kind(item)
        self._placed.remove(item)
        self._counts[kind] -= 1
        if not self._counts[kind]:
            del self._counts[kind]
        if kind in self._later:
            following = next(iter(self._later[kind]))
            self._remove_later(following)
            self._place(following)

    def _remove_later(self, item: T) -> None:
        later = self._later[_kind(item)]
        later.remove(item)
        if not later:
            del self._later[_kind(item)]

    def _remove_next(self, item: T) -> None:
        found = self._next[item.priority]
        found.remove(item)
        if not found:
            del self._next[item.priority], self._priorities[bisect_left(self._priorities, item.priority)]


def _kind(item: Prompted) -> Kind:
    return item.priority, item.user, item.urgent
