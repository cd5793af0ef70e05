from __future__ import annotations

import itertools
import threading
import time

import pytest

from pybatch.engine.metrics import EngineMetrics
from pybatch.jobs.report.timeline import Timeline


class Engine:
    """Counts steps on a virtual clock."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.metrics = EngineMetrics(kv_blocks=100)

    def now(self) -> float:
        return self.seconds

    def step(self, *, prompt: int, sequences: int, blocks: int, seconds: float, waiting: int = 0) -> None:
        self.seconds += seconds
        self.metrics.output_tokens += sequences
        self.metrics.step(
            tokens=prompt + sequences,
            sequences=sequences,
            waiting=waiting,
            kv_blocks=blocks,
            preemptions=0,
            schedule_time=0.0,
            run_time=seconds,
            sample_time=0.0,
        )


def test_intervals_have_rates_and_means_over_their_steps() -> None:
    engine = Engine()
    timeline = Timeline(engine.metrics, now=engine.now)
    for _ in range(10):
        engine.step(prompt=90, sequences=10, blocks=20, seconds=0.1, waiting=7)
    timeline.sample()
    for sequences in (2, 4):
        engine.step(prompt=0, sequences=sequences, blocks=50, seconds=0.5)
    timeline.sample()
    busy, last = timeline.intervals()
    assert (busy.begin, busy.end, last.end) == pytest.approx((0, 1, 2))
    assert (busy.prompt_rate, busy.output_rate, busy.sequences, busy.kv_usage, busy.waiting) == pytest.approx(
        (900, 100, 10, 0.2, 7)
    )
    assert (last.prompt_rate, last.output_rate, last.sequences, last.kv_usage, last.waiting) == pytest.approx(
        (0, 6, 3, 0.5, 0)
    )


def test_memory_is_bounded_and_nothing_is_lost_by_it() -> None:
    engine = Engine()
    timeline = Timeline(engine.metrics, most=64, between=0.01, now=engine.now)
    for i in range(10_000):
        engine.step(prompt=9, sequences=1 + i % 2, blocks=1, seconds=0.01)
        timeline.sample()
        assert len(timeline._samples) < 64
    intervals = timeline.intervals(20)
    assert 10 <= len(intervals) <= 20
    assert intervals[0].begin == 0
    assert timeline.seconds == intervals[-1].end > 97
    for before, after in itertools.pairwise(intervals):
        assert before.end == after.begin
        assert after.end - after.begin < 15
    assert sum(each.output_rate * (each.end - each.begin) for each in intervals) == pytest.approx(
        1.5 * 100 * timeline.seconds, abs=1
    )


def test_a_step_longer_than_an_interval_is_spread_over_its_time_and_idleness_is_not() -> None:
    engine = Engine()
    timeline = Timeline(engine.metrics, now=engine.now)
    for seconds, blocks in ((0.5, 5), (1.0, 0)):  # 0: with this step all requests have ended
        for _ in range(round(seconds * 10) - 1):
            engine.seconds += 0.1
            timeline.sample()
        engine.step(prompt=90, sequences=10, blocks=blocks, seconds=0.1)
        timeline.sample()
    for _ in range(20):
        engine.seconds += 0.1
        timeline.sample()
    first, long, *idle = timeline.intervals()
    assert (first.output_rate, long.output_rate) == pytest.approx((20, 10))
    assert (first.begin, long.begin, long.end, long.sequences) == pytest.approx((0, 0.5, 1.5, 10))
    assert [each.output_rate for each in idle] == [0] * 20


def test_a_job_of_no_time_has_no_interval() -> None:
    engine = Engine()
    timeline = Timeline(engine.metrics, now=engine.now)
    with timeline.sampling():
        pass
    assert timeline.intervals() == []


def test_a_thread_takes_the_samples() -> None:
    timeline, before = Timeline(EngineMetrics(kv_blocks=10), most=8, between=0.002), set(threading.enumerate())
    with timeline.sampling():
        deadline = time.monotonic() + 60
        while timeline._between == 0.002:  # until it has had to halve them
            assert time.monotonic() < deadline
            time.sleep(0.001)
        (sampler,) = set(threading.enumerate()) - before
    assert not sampler.is_alive()
    assert 1 < len(timeline._samples) < 8
    assert timeline.seconds > 0.01
