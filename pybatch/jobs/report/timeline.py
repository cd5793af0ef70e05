"""What an engine did over time, in memory that does not grow with the time."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from pybatch.engine.metrics import EngineMetrics


SHORTEST = 1e-4  # seconds, of an interval


class Sample(NamedTuple):
    """The engine's counters at an instant, in seconds since the timeline began. All but the last two only grow, so that
    what happened between two samples does not depend on those in between."""

    at: float
    steps: int
    sequences: int
    blocks: int
    tokens: int
    output_tokens: int
    waiting: int
    blocks_now: int


@dataclass(frozen=True, slots=True)
class Interval:
    """From `begin` to `end`, in seconds: tokens per second, and means over its steps. kv_usage: 0 to 1. waiting: in the
    engine's queue at the end."""

    begin: float
    end: float
    prompt_rate: float
    output_rate: float
    sequences: float
    kv_usage: float
    waiting: int


class Timeline:
    """Samples of an engine's counters.

    most: samples that are kept, at least 4. When there are as many, every other one goes and the time between two
    doubles. between: that time at first, in seconds. now: a clock, in seconds.
    """

    def __init__(
        self,
        metrics: EngineMetrics,
        *,
        most: int = 1024,
        between: float = 0.1,
        now: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._metrics, self._most, self._between, self._now = metrics, most, between, now
        self._began = now()
        self._samples = [self._take()]

    @contextmanager
    def sampling(self) -> Iterator[None]:
        """Takes samples on a thread of its own, and a last one at the end."""
        stop = threading.Event()

        def run() -> None:
            while not stop.wait(self._between):
                self._keep(self._take())

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()
            self._keep(self._take())

    def sample(self) -> None:
        """Takes a sample, unless the last one was just now."""
        sample = self._take()
        if sample.at - self._samples[-1].at >= self._between * 0.999:
            self._keep(sample)

    def _keep(self, sample: Sample) -> None:
        self._samples.append(sample)
        if len(self._samples) >= self._most:
            del self._samples[1:-1:2]
            self._between *= 2

    def _take(self) -> Sample:
        metrics = self._metrics
        return Sample(
            at=self._now() - self._began,
            steps=metrics.steps,
            sequences=metrics.step_sequences,
            blocks=metrics.step_blocks,
            tokens=metrics.step_tokens,
            output_tokens=metrics.output_tokens,
            waiting=metrics.waiting_now,
            blocks_now=metrics.kv_blocks_now,
        )

    @property
    def seconds(self) -> float:
        """From its beginning to the last sample."""
        return self._samples[-1].at

    def intervals(self, most: int = 200) -> list[Interval]:
        """What happened, in at most so many intervals of about the same length. A step that takes longer is one
        interval: its tokens are spread over its time."""
        width, edges = self.seconds / most, self._samples[:1]
        for sample in self._samples[1:]:
            first_step = sample.steps == self._samples[0].steps
            under_way = sample.steps == edges[-1].steps and (sample.blocks_now > 0 or first_step)
            if sample.at - edges[-1].at >= max(width * 0.999, SHORTEST) and not under_way:
                edges.append(sample)
        if len(edges) > 1 and edges[-1] is not self._samples[-1]:
            edges[-1] = self._samples[-1]  # what is left over belongs to the last
        return [self._between_samples(first, last) for first, last in pairwise(edges)]

    def _between_samples(self, first: Sample, last: Sample) -> Interval:
        seconds, steps = last.at - first.at, max(1, last.steps - first.steps)
        output = last.output_tokens - first.output_tokens
        return Interval(
            begin=first.at,
            end=last.at,
            prompt_rate=max(0, last.tokens - first.tokens - output) / seconds,
            output_rate=output / seconds,
            sequences=(last.sequences - first.sequences) / steps,
            kv_usage=(last.blocks - first.blocks) / steps / self._metrics.kv_blocks,
            waiting=last.waiting,
        )
