"""Batching policies: how many sequences may join the batch in this step. All else is up to the one scheduler.

The scheduler asks a policy before each step, with the same few facts, and tells it how many joined. Preempted sequences
return to the batch without being counted.

Who these sequences are is the scheduler's matter, and so priorities are: the best of those that wait are the first to
join. A policy that holds all back holds back better ones too. With static and dynamic a better sequence that comes
while a batch runs waits for the next, and with micro for the next group; there it may take the place and the blocks of
a worse one. Only continuous bounds how long an interactive request waits for the rows of batches.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Load:
    """What a policy decides by: numbers of sequences.

    prefilling: of the running ones. waiting: those that have not run yet. returning: those that wait to run again.
    longest_wait: seconds since the first of those that have not run yet arrived. queued: all that have come so far.
    """

    running: int
    prefilling: int
    waiting: int
    returning: int
    longest_wait: float
    queued: int
    max_num_seqs: int


class Policy(Protocol):
    last: float
    """Of sequences counted as they come, the last that may join for the first time."""

    def open_places(self, load: Load) -> int:
        """Returns the most sequences that may join in this step for the first time."""

    def joined(self, count: int, *, full: bool) -> None:
        """`count` of them joined. full: another one could not, because it lacked KV blocks or a place (and not because
        the step had no tokens left)."""


class Continuous:
    """Sequences join as soon as there is room (Orca, Yu et al. 2022)."""

    last = math.inf

    def open_places(self, load: Load) -> int:
        return load.max_num_seqs

    def joined(self, count: int, *, full: bool) -> None:
        pass


class Static:
    """When nothing runs, the sequences that are waiting form a batch, as many as there is room for, and run to the end
    before the next batch. It may take several steps until all of them have joined; the place of one that is aborted
    meanwhile stays empty rather than go to one that came later."""

    def __init__(self) -> None:
        self.last = math.inf
        self._open = 0

    def open_places(self, load: Load) -> int:
        if load.running + load.returning == 0 and self._may_start(load):
            self._open, self.last = min(load.waiting, load.max_num_seqs), load.queued
        return self._open

    def joined(self, count: int, *, full: bool) -> None:
        self._open = 0 if full else self._open - count

    def _may_start(self, load: Load) -> bool:
        return True


class Dynamic(Static):
    """Like static, but a batch starts only when it is full or its oldest request has waited for max_wait seconds."""

    def __init__(self, max_wait: float) -> None:
        super().__init__()
        self._max_wait = max_wait

    def _may_start(self, load: Load) -> bool:
        return load.waiting >= load.max_num_seqs or load.longest_wait >= self._max_wait


class Micro(Static):
    """Groups of a quarter of the places join one after the other, each when the previous one has computed its prompts:
    while a group prefills, earlier ones decode. The place of one that is aborted is the next one's."""

    def open_places(self, load: Load) -> int:
        if self._open == 0 and load.prefilling == 0:
            self._open = min(load.waiting, math.ceil(load.max_num_seqs / 4))
        return self._open


def make_policy(name: str, *, max_batch_wait: float) -> Policy:
    """Returns a new policy by its name in EngineConfig. max_batch_wait: in seconds, for dynamic."""
    policies: dict[str, Callable[[], Policy]] = {
        "continuous": Continuous,
        "static": Static,
        "dynamic": lambda: Dynamic(max_batch_wait),
        "micro": Micro,
    }
    return policies[name]()
