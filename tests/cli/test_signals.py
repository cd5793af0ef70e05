from __future__ import annotations

import io
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from cli_command import COMMAND, FAST, Cli

from pybatch.api import model_handle
from pybatch.api.engine_args import EngineArgs

ROWS = 20_000


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[Any]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.005)


@contextmanager
def job(model: Path, results: Path, *, rows: int = ROWS) -> Iterator[subprocess.Popen[str]]:
    prompts = results.with_suffix(".in")
    prompts.write_text("".join(json.dumps({"prompt": f"Say {i}", "pad": "x" * 2000}) + "\n" for i in range(rows)))
    command = [*COMMAND, "run", prompts, "-o", results, "--model", model, *FAST]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        yield process


def check_end(process: subprocess.Popen[str], results: Path, code: int) -> None:
    """The rows are whole, and the summary counts them."""
    _, err = process.communicate(timeout=120)
    assert process.returncode == code, err
    assert "Traceback" not in err
    text = results.read_text()
    assert text.endswith("\n")
    rows = [json.loads(line) for line in text.splitlines()]
    assert 0 < len(rows) < ROWS
    assert all(set(row) == {"prompt", "pad", "row", "response", "finish_reason", "usage"} for row in rows)
    assert [row["row"] for row in rows] == sorted(row["row"] for row in rows)
    assert f"Interrupted: {len(rows):,} rows are done and saved" in err
    assert "To go on: pybatch run " in err
    assert "output throughput" in err


def journal_of(results: Path) -> Path:
    return results.with_name(f"{results.name}.journal")


def has_rows(results: Path) -> bool:
    journal = journal_of(results)
    return journal.exists() and journal.stat().st_size > 10_000


def journal_exists(process: subprocess.Popen[Any], results: Path) -> bool:
    """Before torch is imported, let alone the model loaded."""
    imported = "libtorch" in Path(f"/proc/{process.pid}/maps").read_text()
    exists = journal_of(results).exists()
    assert exists or not imported
    return exists


@pytest.fixture
def interrupted_load(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C comes while a model loads, and what ends the process raises SystemExit."""

    def load(arguments: EngineArgs) -> None:
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(model_handle, "open_session", load)
    monkeypatch.setattr(os, "_exit", sys.exit)


def test_ctrl_c_sigterm_and_sighup_end_a_job_with_whole_rows_and_a_summary(
    cli: Cli, tiny_model: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    for number, code in ((signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)):
        results = tmp_path / f"{number}.jsonl"
        with job(tiny_model, results) as process:
            wait_for(lambda: has_rows(results), process)  # noqa: B023
            process.send_signal(number)
            check_end(process, results, code)
    rows = results.read_bytes()
    again = ["run", str(results.with_suffix(".in")), "-o", str(results), "--model", str(tiny_model), *FAST]
    request.getfixturevalue("interrupted_load")
    ran, count = cli(*again), rows.count(b"\n")
    kept = f"Interrupted: {count:,} rows are done and saved in {results}. To go on: pybatch {shlex.join(again)}\n"
    assert (ran.code, ran.err) == (130, kept)
    assert results.read_bytes() == rows


def test_many_signals_end_a_job_without_a_traceback(tiny_model: Path, tmp_path: Path) -> None:
    results = tmp_path / "out.jsonl"
    with job(tiny_model, results) as process:
        wait_for(lambda: has_rows(results), process)
        while process.poll() is None:
            process.send_signal(signal.SIGINT)
            time.sleep(0.002)
        _, err = process.communicate(timeout=120)
    assert process.returncode in (130, -signal.SIGINT)  # the latter where the interpreter was at its end
    assert "Traceback" not in err
    assert journal_of(results).stat().st_size > 10_000


def test_a_signal_while_the_model_loads_leaves_no_file(tiny_model: Path, tmp_path: Path) -> None:
    results = tmp_path / "out.jsonl"
    with job(tiny_model, results, rows=1) as process:
        wait_for(lambda: journal_exists(process, results), process)
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=120)
    assert (process.returncode, err) == (143, "Interrupted: no row was answered.\n")
    assert not results.exists()
    assert not journal_of(results).exists()


@pytest.mark.parametrize(
    ("command", "says"),
    [
        (["chat"], "Interrupted while the model was loaded: nothing was answered."),
        (["serve", "--port", "0"], "Interrupted while the model was loaded: nothing was answered."),
        (["bench", "step"], "Interrupted: nothing was measured."),
        (["prompts", "try", "ask.prompt"], "Interrupted while the model was loaded: nothing was answered."),
        (
            ["compare", "ask.prompt", "other.prompt", "--data", "rows.jsonl", "--score", "exact:a", "-o", "answers"],
            "is done is saved. To go on: pybatch compare ask.prompt other.prompt --data rows.jsonl",
        ),
    ],
)
@pytest.mark.usefixtures("interrupted_load")
def test_ctrl_c_while_the_model_loads_is_told_in_a_line(
    cli: Cli, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: list[str], says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "stdin", io.StringIO("Hello"))
    for name in ("ask", "other"):
        Path(f"{name}.prompt").write_text(f"{name}?")
    Path("rows.jsonl").write_text('{"a": 1}\n')
    ran = cli(*command, "--model", tiny_model)
    assert (ran.code, ran.out, ran.err.count("\n")) == (130, "", 1), ran.err
    assert says in ran.err


def test_ctrl_c_in_the_answer_to_a_piped_message_says_that_it_is_not_whole(tiny_model: Path) -> None:
    command = [*COMMAND, "chat", "--model", tiny_model, "--max-tokens", "400", "--ignore-eos", "--threads", "1"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdin.write(b"Hello")
        process.stdin.close()
        assert process.stdout.read(1)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == 130
        assert process.stderr.read().endswith(b"pybatch: interrupted: the answer is not whole\n")


def test_a_slow_producer_is_answered_at_once_and_ctrl_c_ends_the_wait_for_more(tiny_model: Path) -> None:
    command = [*COMMAND, "run", "-", "-o", "-", "--model", tiny_model, *FAST]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for i in range(2):
            process.stdin.write(json.dumps({"prompt": f"Say {i}"}).encode() + b"\n")
            process.stdin.flush()
            assert json.loads(process.stdout.readline())["row"] == i
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=120) == 130
        assert process.stderr is not None
        assert b"Interrupted: 2 rows are done" in process.stderr.read()


def test_a_signal_that_the_caller_ignores_stays_ignored_and_handlers_are_restored() -> None:
    code = """
import os, signal, sys
from pybatch.cli.signals import ending_at_once, ending_in_order, interrupting
signal.signal(signal.SIGHUP, signal.SIG_IGN)

def clean_up():
    print("cleaned up", flush=True)
    return "Ended."

with ending_at_once(clean_up):
    os.kill(os.getpid(), signal.SIGHUP)
    with ending_in_order("At once.") as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.signum == signal.SIGTERM
    with interrupting():
        try:
            os.kill(os.getpid(), signal.SIGINT)
        except KeyboardInterrupt:
            print("interrupted", flush=True)
    os.kill(os.getpid(), signal.SIGINT)
"""
    ran = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True)
    assert (ran.returncode, ran.stdout, ran.stderr) == (130, "interrupted\ncleaned up\n", "Ended.\n")
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert os.getpid()
