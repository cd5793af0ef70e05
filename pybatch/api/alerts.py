"""Limits that an engine is watched by while it steps: each that is passed is a line in the log once, and a call."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from typing import NamedTuple

import torch

from pybatch.engine import Engine
from pybatch.machine.memory import free_memory

logger = logging.getLogger(__name__)

BETWEEN = 1.0  # seconds from one look to the next
WINDOW = 10.0  # seconds, over which preemptions are counted
RECOVERED = 0.9  # of a limit, below which passing it is news again


@dataclass(frozen=True, kw_only=True)
class AlertLimits:
    """None: no alert of the kind.

    kv_usage: share of the KV blocks that are in use. memory: bytes of the host that are still free, at least.
    preemptions: for each step, over ten seconds: above some share of one the engine computes again what it has thrown
    away. stalled: seconds in which requests wait and none gets a first token.
    """

    kv_usage: float | None = 0.98
    memory: float | None = 256 * 2**20
    preemptions: float | None = 0.2
    stalled: float | None = 60.0

    def __post_init__(self) -> None:
        for field in fields(self):
            limit = getattr(self, field.name)
            if limit is not None and not limit > 0:
                raise ValueError(f"{field.name}: expected a number above 0 or None, got {limit!r}")


@dataclass(frozen=True, slots=True)
class Alert:
    """kind: the name of the limit. value: what was measured."""

    kind: str
    value: float
    limit: float
    message: str


class Moment(NamedTuple):
    at: float
    steps: int
    preemptions: int


class Alerts:
    """Looks at an engine once a second while it steps. An alert comes when a limit is passed, and not again before what
    it is of has been well within it; the log has each kind once.

    A callback runs on the thread that steps: it should be brief, and may not use the engine. What it raises is logged.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        clock: Callable[[], float] = time.perf_counter,
        free: Callable[[], int] = lambda: free_memory(torch.device("cpu")),
    ) -> None:
        self.limits = AlertLimits()
        self.callbacks: list[Callable[[Alert], object]] = []
        self._engine, self._clock, self._free = engine, clock, free
        self._next = clock()
        self._moments: deque[Moment] = deque()
        self._begun, self._moved = 0, clock()  # requests that have a first token, and since when that has not grown
        self._waited = False  # whether some did at the last look: an hour ago, if the engine has been idle since
        self._passed: set[str] = set()
        self._logged: set[str] = set()

    def look(self) -> None:
        """To be called after each step."""
        now = self._clock()
        if now < self._next:
            return
        self._next = now + BETWEEN
        for kind, value, limit, share, message in self._measured(now):
            if share >= 1 and kind not in self._passed:
                self._passed.add(kind)
                self._raise(Alert(kind, value, limit, message))
            elif share < RECOVERED:
                self._passed.discard(kind)

    def _measured(self, now: float) -> Iterator[tuple[str, float, float, float, str]]:
        """Of each limit: its name, the value, the limit, the value's share of it, and what to say."""
        limits, engine = self.limits, self._engine
        metrics = engine.metrics
        if limits.kv_usage is not None:
            used = engine.num_kv_blocks_used / engine.num_kv_blocks
            message = f"{used:.0%} of the KV cache is in use: more num_kv_blocks, or a smaller max_num_seqs, save waits"
            yield "kv_usage", used, limits.kv_usage, used / limits.kv_usage, message
        if limits.memory is not None and (free := self._free_memory()) is not None:
            message = f"{free / 2**20:,.0f} MiB of memory are free"
            yield "memory", free, limits.memory, limits.memory / max(1, free), message
        rate = self._preemption_rate(now, metrics.steps, metrics.preemptions)
        if limits.preemptions is not None:
            message = f"{rate:.2f} sequences are preempted in each step, and computed again: the KV cache is too small"
            yield "preemptions", rate, limits.preemptions, rate / limits.preemptions, message
        begun, waiting = metrics.ttft.count, engine.num_waiting
        if begun != self._begun or not waiting or not self._waited:
            self._begun, self._moved = begun, now
        self._waited = waiting > 0
        if limits.stalled is not None:
            still = now - self._moved
            message = f"{waiting:,} wait, and none has begun to be answered for {still:.0f} s"
            yield "stalled", still, limits.stalled, still / limits.stalled, message

    def _free_memory(self) -> int | None:
        """None where it cannot be told, as by a process that may open no more files."""
        try:
            return self._free()
        except OSError:
            return None

    def _preemption_rate(self, now: float, steps: int, preemptions: int) -> float:
        moments = self._moments
        moments.append(Moment(now, steps, preemptions))
        while moments[0].at < now - WINDOW:
            moments.popleft()
        first = moments[0]
        return (preemptions - first.preemptions) / max(1, steps - first.steps)

    def _raise(self, alert: Alert) -> None:
        if alert.kind not in self._logged:
            self._logged.add(alert.kind)
            # A full cache alone is no fault: bulk jobs fill it.
            level = logging.INFO if alert.kind == "kv_usage" else logging.WARNING
            logger.log(level, "%s: %s", alert.kind, alert.message)
        for callback in self.callbacks:
            try:
                callback(alert)
            except Exception:
                logger.exception("an alert's callback failed")
