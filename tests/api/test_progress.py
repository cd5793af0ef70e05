from __future__ import annotations

import itertools
import os
import pty
import sys
import time
from random import Random

import pytest

from pybatch.api.progress import TOKENS_PER_BYTE, BatchProgress, clock
from pybatch.api.progress_reporter import ProgressReporter
from pybatch.engine.metrics import EngineMetrics, RequestMetrics


def test_the_estimate_of_tokens_to_come() -> None:
    metrics = EngineMetrics(kv_blocks=100)
    assert BatchProgress(metrics, None, None).tokens_left is None
    assert BatchProgress(metrics, 10, 400).tokens_left is None
    progress = BatchProgress(metrics, 10, 400, max_output_tokens=7)
    assert progress.tokens_left == 400 / 4 + 10 * 7
    metrics.step_tokens += 60  # two rows of 20 prompt tokens, done; 8 tokens generated; 12 of further prompts
    metrics.output_tokens += 8
    progress.finish(40, 20, failed=False)
    progress.finish(40, 20, failed=False)
    progress.finish(80, 0, failed=True)
    assert progress.tokens_left == pytest.approx(0.5 * (400 - 160) - 12 + 4 * 7)
    for _ in range(7):
        progress.finish(0, 0, failed=True)
    assert progress.tokens_left == 0


def test_a_line_tells_rows_tokens_speed_kv_use_and_time_left() -> None:
    metrics, clock = EngineMetrics(kv_blocks=100), Clock()
    progress = BatchProgress(metrics, 4, 40, max_output_tokens=10, now=clock)
    assert str(progress) == "0/4 rows · 0 tokens · 0 tok/s · KV 0% · -:-- left"
    step(metrics, clock, tokens=2_010, sequences=2, seconds=2.0, kv_blocks=30)
    metrics.output_tokens = 20
    progress.finish(10, 995, failed=False)
    progress.finish(10, 995, failed=False)
    progress.finish(10, 0, failed=True)
    assert str(progress) == "3/4 rows (1 failed) · 2,010 tokens · 1,005 tok/s · KV 30% · 0:01 left"
    assert progress.share_done == pytest.approx(2010 / (2010 + 995 + 10))
    assert str(BatchProgress(metrics, None, None)).startswith("0 rows · 0 tokens")


def test_cached_and_resumed_rows_are_done_but_no_work() -> None:
    metrics, clock = EngineMetrics(kv_blocks=100), Clock()
    progress = BatchProgress(metrics, 100, 4_000, now=clock)
    progress.resume(50 * 40, rows=50)
    progress.resume(40, failed=1)
    for _ in range(30):
        progress.finish(40, 20, failed=False, cached=True)
    assert progress.tokens_left is progress.seconds_left is None  # no row tells yet what a row costs
    assert str(progress) == ("81/100 rows (1 failed, 30 cached, 51 resumed) · 0 tokens · 0 tok/s · KV 0% · -:-- left")
    step(metrics, clock, tokens=24, sequences=1, seconds=1.0)
    metrics.output_tokens = 4
    progress.finish(40, 20, failed=False)
    assert progress.prompt_tokens == 20
    assert progress.tokens_left == pytest.approx(18 / 31 * (20 + 4))  # one of 31 rows was work
    assert progress.seconds_left == pytest.approx(18 / 31)


def test_as_many_of_the_rows_left_are_expected_to_be_work_as_of_those_seen() -> None:
    metrics, clock = EngineMetrics(kv_blocks=100), Clock()
    progress = BatchProgress(metrics, 1_000, 40_000, now=clock)
    step(metrics, clock, tokens=2 * 24, sequences=2, seconds=2.0, waiting=1)
    metrics.output_tokens = 8
    for _ in range(2):
        progress.finish(40, 20, failed=False)
    assert progress.tokens_left == pytest.approx(998 * 24)
    for _ in range(87):
        progress.finish(40, 20, failed=False, cached=True)
    progress.know(at_work=8, repeating=3)  # with 2 and 87: 10 of 100 are work
    assert progress.tokens_left == pytest.approx((8 + 0.1 * 900) * 24)
    assert progress.seconds_left == pytest.approx(911 * 2 / 89)  # 89 rows took 2 s
    for _ in range(900):
        progress.finish(40, 20, failed=False, cached=True)
    assert progress.tokens_left == pytest.approx(8 * 24)
    assert progress.seconds_left == pytest.approx(8, rel=0.1)  # not 11 * 2 / 989: these are known to be work


def test_before_the_first_answer_rows_to_come_are_expected_to_be_as_those_seen_last() -> None:
    progress = BatchProgress(EngineMetrics(kv_blocks=100), 20_000, 20_000 * 40, max_output_tokens=10)
    progress.know(at_work=10, repeating=2_000, new=0.0)  # ten prompts, again and again
    assert progress.tokens_left == pytest.approx(10 * (40 * TOKENS_PER_BYTE + 10))
    progress.know(at_work=10, repeating=2_000, new=0.5)
    assert progress.tokens_left == pytest.approx((10 + 17_990 / 2) * (40 * TOKENS_PER_BYTE + 10))


def test_samples_of_a_row_run_side_by_side() -> None:
    """Steps of 0.1 s: the last row has four samples of 50 tokens, which end together."""
    metrics, clock = EngineMetrics(kv_blocks=100), Clock()
    progress = BatchProgress(metrics, 9, 9 * 40, max_output_tokens=50, samples=4, now=clock)
    for row in range(9):
        for _ in range(50 if row < 8 else 25):
            metrics.output_tokens += 4
            step(metrics, clock, tokens=4, sequences=4, seconds=0.1, waiting=0 if row == 8 else 4)
            assert progress.seconds_left is not None
        if row < 8:
            metrics.finished(RequestMetrics(0.0, 0, num_output_tokens=4 * 50, num_samples=4), failed=False)
            progress.finish(40, 0, failed=False)
    assert progress.seconds_left == pytest.approx(2.5, abs=0.3)


def test_prompt_tokens_that_the_prefix_cache_has_are_not_to_come() -> None:
    metrics = EngineMetrics(kv_blocks=100)
    progress = BatchProgress(metrics, 10, 1_000)
    for _ in range(5):
        metrics.step_tokens += 30 + 10
        metrics.output_tokens += 10
        metrics.finished(RequestMetrics(0.0, 100, num_output_tokens=10, num_cached_tokens=70), failed=False)
        progress.finish(100, 100, failed=False)
    assert progress.tokens_left == pytest.approx(5 * (30 + 10))


def test_the_rate_is_that_of_the_last_seconds() -> None:
    metrics, clock = EngineMetrics(kv_blocks=100), Clock()
    progress = BatchProgress(metrics, None, None, now=clock)
    for tokens in (1_000, 10):
        for _ in range(100):
            step(metrics, clock, tokens=tokens, sequences=1, seconds=0.1)
            assert progress.recent_rate > 0
    assert progress.recent_rate == pytest.approx(100)
    assert progress.tokens / progress.seconds == pytest.approx(5_050)


def spread_lengths(rows: int, mean: float, limit: int) -> list[int]:
    random = Random(0)
    return [min(limit, 1 + int(random.expovariate(1 / mean))) for _ in range(rows)]


@pytest.mark.parametrize("step_cost", [(0.006, 0.0007), (0.02, 0.00002)], ids=["by the token", "by the step"])
@pytest.mark.parametrize(
    ("lengths", "limit", "tolerance"),
    [
        ([128] * 300, 128, 0.10),
        (spread_lengths(400, 100, 512), 512, 0.12),
        (spread_lengths(400, 100, 10_000), None, 0.12),
    ],
    ids=["equal", "spread", "without a limit"],
)
def test_the_time_left_holds_to_the_end(
    lengths: list[int], limit: int | None, tolerance: float, step_cost: tuple[float, float]
) -> None:
    """From the middle of a job on, as the batch empties too, the estimate is near the truth and does not jump up."""
    seconds, estimates = run_simulated(lengths, limit, step_cost)
    later = [(at, left) for at, left in estimates if at > seconds / 2]
    assert len(later) > 30
    for at, left in later:
        assert left == pytest.approx(seconds - at, abs=tolerance * seconds)
    for (_, before), (_, after) in itertools.pairwise(later):
        assert after - before < 0.05 * seconds


def test_the_time_left_of_an_endless_answer_goes_down_to_the_limit() -> None:
    """That the others were short does not tell that it is about to end."""
    seconds, estimates = run_simulated([1_000 if i == 290 else 20 + i % 60 for i in range(300)], 1_000, (0.02, 0.0))
    alone = [(at, left) for at, left in estimates if at > seconds - 300 * 0.02]
    assert len(alone) > 35
    for at, left in alone:
        assert left == pytest.approx(seconds - at, rel=0.2, abs=0.03 * seconds)


def run_simulated(
    lengths: list[int], limit: int | None, step_cost: tuple[float, float], *, slots: int = 32, prompt: int = 64
) -> tuple[float, list[tuple[float, float]]]:
    """Runs rows of such output lengths through a batch of `slots` on a virtual clock. Returns how long it took, and at
    instants of it the estimate of the time left."""
    clock, metrics = Clock(), EngineMetrics(kv_blocks=100)
    progress = BatchProgress(metrics, len(lengths), 4 * prompt * len(lengths), limit, now=clock)
    waiting, running = list(reversed(lengths)), list[list[int]]()  # running: tokens that it has, and will have
    estimates = list[tuple[float, float]]()
    while waiting or running:
        joined = [[0, waiting.pop()] for _ in range(min(4, slots - len(running), len(waiting)))]
        tokens, running = len(running) + prompt * len(joined), running + joined
        for row in running:
            row[0] += 1
        metrics.output_tokens += len(running)
        seconds = step_cost[0] + step_cost[1] * tokens
        step(metrics, clock, tokens=tokens, sequences=len(running), waiting=len(waiting), seconds=seconds)
        for done, length in running:
            if done == length:
                metrics.finished(RequestMetrics(0.0, prompt, num_output_tokens=length), failed=False)
                progress.finish(4 * prompt, prompt, failed=False)
        running = [row for row in running if row[0] < row[1]]
        if metrics.steps % 8 == 0 and (left := progress.seconds_left) is not None:
            estimates.append((clock(), left))
    assert progress.seconds_left == 0
    return clock(), estimates


class Clock:
    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


def step(
    metrics: EngineMetrics,
    clock: Clock,
    *,
    tokens: int,
    sequences: int,
    seconds: float,
    waiting: int = 0,
    kv_blocks: int = 0,
) -> None:
    clock.seconds += seconds
    metrics.step(
        tokens=tokens,
        sequences=sequences,
        waiting=waiting,
        kv_blocks=kv_blocks,
        preemptions=0,
        schedule_time=0.0,
        run_time=seconds,
        sample_time=0.0,
    )


def test_lines_are_printed_where_there_is_no_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(ProgressReporter, "LINE_INTERVAL", 0.01)
    progress = BatchProgress(EngineMetrics(kv_blocks=100), 10, 100)
    printed, end = "", time.monotonic() + 60
    with ProgressReporter("Answering", progress, lines=True):
        while not printed:
            assert time.monotonic() < end
            time.sleep(0.01)
            printed = capsys.readouterr().err
    assert progress.seconds == progress.seconds  # the clock has stopped
    with ProgressReporter("Silent", progress, lines=False):
        time.sleep(0.1)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert printed.startswith("Answering: 0/10 rows")
    assert "Silent" not in captured.err


def test_a_terminal_that_is_closed_does_not_end_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = pty.openpty()
    with open(theirs, "w", buffering=1, closefd=False) as terminal:
        monkeypatch.setenv("TERM", "xterm")
        monkeypatch.setattr(sys, "stderr", terminal)
        with ProgressReporter("Answering", BatchProgress(EngineMetrics(kv_blocks=100), 10, 100), lines=True):
            os.close(ours)
        monkeypatch.undo()
        os.dup2(os.open(os.devnull, os.O_WRONLY), theirs)  # takes what is still buffered


@pytest.mark.parametrize(("seconds", "shown"), [(0.4, "0:00"), (61, "1:01"), (3599.6, "1:00:00"), (36_000, "10:00:00")])
def test_clock(seconds: float, shown: str) -> None:
    assert clock(seconds) == shown
