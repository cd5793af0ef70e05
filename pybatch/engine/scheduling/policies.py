"""Batching policies: how many sequences may join in this step for the first time. All else is the one scheduler's.

Each policy answers before a step, from the same few facts, and is told what came of it. A sequence that was preempted
has its place in the batch back.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Load:
    """What a policy may look at: numbers of sequences.

    prefilling: of the running ones. waiting: those that have not run yet. returning: those that wait to run again.
    longest_wait: seconds since the first in the queue arrived.
    """

    running: int
    prefilling: int
    waiting: int
    returning: int
    longest_wait: float
    max_num_seqs: int


class Policy(Protocol):
    def open_places(self, load: Load) -> int:
        """The most sequences that may join in this step for the first time."""

    def joined(self, count: int, *, full: bool) -> None:
        """`count` of them joined. full: another did not, for want of KV blocks or places (rather than of tokens left in
        the step)."""


class Continuous:
    """Whoever waits joins as soon as there is room (Orca, Yu et al. 2022)."""

    def open_places(self, load: Load) -> int:
        return load.max_num_seqs

    def joined(self, count: int, *, full: bool) -> None:
        pass


class Static:
    """A batch is formed of who waits when nothing runs, as many as there is room for, and runs to its end before the
    next. Their prompts may take several steps to join."""

    def __init__(self) -> None:
        self._open = 0

    def open_places(self, load: Load) -> int:
        if load.running + load.returning == 0 and self._may_start(load):
            self._open = min(load.waiting, load.max_num_seqs)
        return self._open

    def joined(self, count: int, *, full: bool) -> None:
        self._open = 0 if full else self._open - count

    def _may_start(self, load: Load) -> bool:
        return True


class Dynamic(Static):
    """As static, but a batch starts only when it is full or its oldest request has waited for max_wait seconds."""

    def __init__(self, max_wait: float) -> None:
        super().__init__()
        self._max_wait = max_wait

    def _may_start(self, load: Load) -> bool:
        return load.waiting >= load.max_num_seqs or load.longest_wait >= self._max_wait


class Micro(Static):
    """Groups of a quarter of the places join one after the other, each when the one before is through its prompts:
    while one group is prefilled, those before it decode."""

    def open_places(self, load: Load) -> int:
        if self._open == 0 and load.prefilling == 0:
            self._open = min(load.waiting, math.ceil(load.max_num_seqs / 4))
        return self._open


def make_policy(name: str, *, max_batch_wait: float) -> Policy:
    """The policy of that name; max_batch_wait is dynamic's."""
    policies: dict[str, Callable[[], Policy]] = {
        "continuous": Continuous,
        "static": Static,
        "dynamic": lambda: Dynamic(max_batch_wait),
        "micro": Micro,
    }
    return policies[name]()
