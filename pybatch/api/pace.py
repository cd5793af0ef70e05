"""How fast an engine goes of late."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from pybatch.engine.metrics import EngineMetrics


class Moment(NamedTuple):
    at: float
    steps: int
    tokens: int


class Pace:
    """The engine's pace over the last seconds, or over the last steps where these take long. Who reads it calls
    `observe` before, a few times a second or less."""

    SECONDS, STEPS, BETWEEN = 5.0, 16, 0.2  # the window's least length, and the least time between two moments

    def __init__(self, metrics: EngineMetrics, now: Callable[[], float] = time.perf_counter) -> None:
        self._metrics, self._now = metrics, now
        self._moments = deque([self._moment()])
        self._slowness = 1.0

    def _moment(self) -> Moment:
        return Moment(self._now(), self._metrics.steps, self._metrics.step_tokens)

    def observe(self) -> None:
        moments, moment = self._moments, self._moment()
        if len(moments) > 1 and moment.at - moments[-2].at < self.BETWEEN:
            moments.pop()
        moments.append(moment)
        while len(moments) > 2 and self._suffices_from(moments[1]):
            moments.popleft()
        fixed, per_token = self._metrics.step_cost.line()
        expected = fixed * (moment.steps - moments[0].steps) + per_token * (moment.tokens - moments[0].tokens)
        if expected > 0:
            self._slowness = (moment.at - moments[0].at) / expected

    def _suffices_from(self, first: Moment) -> bool:
        last = self._moments[-1]
        return last.at - first.at >= self.SECONDS and last.steps - first.steps >= self.STEPS

    @property
    def rate(self) -> float:
        """Prompt and output tokens per second."""
        first, last = self._moments[0], self._moments[-1]
        return (last.tokens - first.tokens) / (last.at - first.at) if last.at > first.at else 0.0

    def seconds_for(self, steps: float, tokens: float) -> float | None:
        """What so many steps with so many tokens in all will take, if the engine keeps its pace; None before its first
        step."""
        fixed, per_token = self._metrics.step_cost.line()
        return self._slowness * (fixed * steps + per_token * tokens) if fixed or per_token else None
