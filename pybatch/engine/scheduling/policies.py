"""Batching policies: how many waiting sequences may join in this step. All else is the one scheduler's.

Each policy answers before a step, from the same few facts, and is told what came of it. A sequence that was preempted
has its place in the batch back.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Load:
    """What a policy may look at. longest_wait: seconds since the first in the queue arrived."""

    running: int
    prefilling: int
    waiting: int
    longest_wait: float
    max_num_seqs: int


class Policy(Protocol):
    def open_places(self, load: Load) -> int:
        """The most sequences that may join in this step."""

    def joined(self, count: int, *, queue_empty: bool) -> None:
        """`count` sequences joined; if that emptied the queue, those who come later were not there in time."""

    def preempted(self) -> None:
        """A sequence has left for the queue and will come back."""


class Continuous:
    """Whoever waits joins as soon as there is room (Orca, Yu et al. 2022)."""

    def open_places(self, load: Load) -> int:
        return load.max_num_seqs

    def joined(self, count: int, *, queue_empty: bool) -> None:
        pass

    def preempted(self) -> None:
        pass


class Static:
    """A batch is formed of who waits when nothing runs, and runs to its end before the next."""

    def __init__(self) -> None:
        self._open = 0

    def open_places(self, load: Load) -> int:
        if load.running == 0 and self._may_start(load):
            self._open = self._batch_size(load)
        return self._open

    def joined(self, count: int, *, queue_empty: bool) -> None:
        self._open = 0 if queue_empty else self._open - count

    def preempted(self) -> None:
        self._open += 1

    def _may_start(self, load: Load) -> bool:
        return True

    def _batch_size(self, load: Load) -> int:
        return load.max_num_seqs


class Dynamic(Static):
    """As static, but a batch starts only when it is full or its oldest request has waited for max_wait seconds."""

    def __init__(self, max_wait: float = 0.05) -> None:
        super().__init__()
        self._max_wait = max_wait

    def _may_start(self, load: Load) -> bool:
        return load.waiting >= load.max_num_seqs or load.longest_wait >= self._max_wait


class Micro(Static):
    """Groups of a quarter of the places join one after the other, each when the one before is through its prompts:
    while one group is prefilled, those before it decode."""

    def open_places(self, load: Load) -> int:
        if self._open == 0 and load.prefilling == 0:
            self._open = self._batch_size(load)
        return self._open

    def _batch_size(self, load: Load) -> int:
        return math.ceil(load.max_num_seqs / 4)


POLICIES: dict[str, type[Policy]] = {"continuous": Continuous, "static": Static, "dynamic": Dynamic, "micro": Micro}
