from __future__ import annotations

import os
import pty
import sys
import time

import pytest

from pybatch.api.progress import BatchProgress, ProgressReporter, clock
from pybatch.engine.metrics import EngineMetrics


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
    metrics = EngineMetrics(kv_blocks=100)
    progress = BatchProgress(metrics, 4, 40, max_output_tokens=10)
    assert str(progress) == "0/4 rows · 0 tokens · 0 tok/s · KV 0% · -:-- left"
    metrics.step_tokens, metrics.output_tokens, metrics.kv_blocks_now = 2_010, 20, 30
    progress.finish(10, 995, failed=False)
    progress.finish(10, 995, failed=False)
    progress.finish(10, 0, failed=True)
    assert str(progress).startswith("3/4 rows (1 failed) · 2,010 tokens · ")
    assert " tok/s · KV 30% · 0:00 left" in str(progress)
    assert progress.share_done == pytest.approx(2010 / (2010 + 995 + 10))
    assert str(BatchProgress(metrics, None, None)).startswith("0 rows · 0 tokens")


def test_lines_are_printed_where_there_is_no_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(ProgressReporter, "LINE_INTERVAL", 0.01)
    progress = BatchProgress(EngineMetrics(kv_blocks=100), 10, 100)
    with ProgressReporter("Answering", progress, lines=True):
        time.sleep(0.1)
    with ProgressReporter("Silent", progress, lines=False):
        time.sleep(0.1)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines()[0].startswith("Answering: 0/10 rows")
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
