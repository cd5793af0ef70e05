"""pybatch run --report: a report however the job ends."""

from __future__ import annotations

import fcntl
import html
import json
import os
import pty
import re
import signal
import struct
import subprocess
import termios
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from cli_command import COMMAND, FAST, Cli

from pybatch.api.session import Session
from pybatch.tune.cost import dollars

Run = Callable[..., tuple[int, str]]
ROWS = 150


def write_rows(path: Path) -> None:
    """Every tenth is bad, and the last 30 repeat the first."""
    rows = [{"prompt": f"Say {i % 120}", **({} if i % 10 else {"temperature": "<b>hot</b>"})} for i in range(ROWS)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def run(cli: Cli, tiny_model: Path, tmp_path: Path) -> Run:
    """Returns the command's code and what it says."""
    prompts = tmp_path / "prompts.jsonl"
    write_rows(prompts)

    def run(*arguments: str | Path) -> tuple[int, str]:
        code, _, err = cli("run", prompts, "-o", tmp_path / "out.jsonl", "--model", tiny_model, *FAST, *arguments)
        return code, err

    return run


def status(page: str) -> str:
    return re.findall(r'<span class="status[^"]*">([^<]*)</span>', page)[0]


def test_the_report_has_the_figures_of_the_summary(run: Run, tmp_path: Path) -> None:
    report = tmp_path / "report.html"
    prices = ("--price-per-hour", "2", "--compare-price", "mini:0.15:0.60")
    code, said = run("--report", report, "--json", tmp_path / "told.json", *prices)
    page = report.read_text()
    assert code == 1
    assert status(page) == "finished, 15 failed"
    assert "prompts.jsonl with tiny" in page
    figures = dict(re.findall(r"│ (\S.*?) +│ +(\S.*?) │", said))
    assert (figures["rows"], figures["failed: invalid_value"]) == ("150 (15 failed)", "15")
    assert figures["cached rows"] == "27"
    assert figures["output tokens"] == f"{(ROWS - 15 - 27) * 8}"
    for name, value in figures.items():
        if name != "peak memory":
            assert f'<th>{html.escape(name)}</th><td class="value">{html.escape(value)}</td>' in page
    told = json.loads((tmp_path / "told.json").read_text())
    assert (told["rows"], told["rows_failed"], told["rows_cached"]) == (150, 15, 27)
    assert told["failures"] == {"invalid_value": 15}
    assert told["cost"]["dollars"] == pytest.approx(2 * told["seconds"] / 3600)
    assert told["cost"]["per_row"] == pytest.approx(told["cost"]["dollars"] / 150)
    assert figures["cost a row"] == dollars(told["cost"]["per_row"])
    assert figures["cost by mini"].startswith(dollars(told["cost"]["apis"]["mini"]))
    assert page.count("&lt;b&gt;hot&lt;/b&gt;") == 3  # the first examples
    assert "<b>hot" not in page
    for name, value in (("max_tokens", "8"), ("num_kv_blocks", "128"), ("dtype", "float32"), ("max_model_len", "512")):
        assert f'<th>{name}</th><td class="value">{value}</td>' in page


def test_an_interrupted_job_has_a_report_and_so_has_the_run_that_goes_on(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    report, steps, step = tmp_path / "report.html", iter(range(1, 1000)), Session.step

    def interrupted(session: Session) -> None:
        step(session)
        if next(steps) == 12:
            signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patched:
        patched.setattr(Session, "step", interrupted)
        code, said = run("--report", report, "--grace", "0", "--max-num-seqs", "16")
    assert code == 130
    done = int(re.findall(r"Interrupted: (\d+) rows", said)[0])
    assert 0 < done < ROWS
    assert status(report.read_text()).startswith("interrupted")
    code, said = run("--report", report, "--max-num-seqs", "16")
    page = report.read_text()
    assert code == 1
    assert status(page) == "finished, 15 failed"
    assert re.search(rf"\d+ cached, {done} resumed", page)
    assert f'<th>resumed rows</th><td class="value">{done}</td>' in page
    assert "failed in earlier runs of this job" in page


def test_a_job_that_cannot_go_on_has_a_report(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps, step = iter(range(1, 1000)), Session.step

    def fail(session: Session) -> None:
        if next(steps) == 12:
            raise MemoryError("no memory for the step")
        step(session)

    monkeypatch.setattr(Session, "step", fail)
    code, said = run("--report", tmp_path / "report.html")
    assert code == 3
    assert "no memory for the step" in said
    assert status((tmp_path / "report.html").read_text()).startswith("ended by an error")


def test_a_report_that_cannot_be_written_is_told_of_before_the_job_runs(run: Run, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "out.jsonl")
    for name, says in (
        ("prompts.jsonl", "the file of the prompts"),
        ("link", "the file of the results"),
        ("out.errors.jsonl", "the file of the errors"),
        (".", "Is a directory"),
        ("none/report.html", "No such file or directory"),
    ):
        for flag in ("--report", "--json"):
            code, said = run(flag, tmp_path / name)
            assert (code, says in said) == (2, True), said
            assert not (tmp_path / "out.jsonl").exists()
    code, said = run("--report", tmp_path / "both", "--json", tmp_path / "both")
    assert (code, "--json: " in said and "is the file of the report" in said) == (2, True), said


def test_prices_that_are_none_are_refused_before_anything_runs(run: Run, tmp_path: Path) -> None:
    for flags, says in (
        (("--compare-price", "mini:0.15"), "compare_price: expected NAME:IN:OUT"),
        (("--compare-price", "mini:0.15:free"), "'mini:0.15:free'"),
        (("--price-per-hour", "-1"), "price_per_hour: expected dollars, at least 0, got -1.0"),
    ):
        code, said = run(*flags)
        assert (code, says in said) == (2, True), said
        assert not (tmp_path / "out.jsonl").exists()


def test_a_report_that_cannot_be_written_in_the_end_costs_no_result(run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("pybatch.cli.run.answer", removing_first(folder))
        code, said = run("--json", folder / "told.json", "--report", tmp_path / "report.html")
    assert code == 3
    assert f"There is no report: {folder / 'told.json'}: No such file or directory" in said
    assert status((tmp_path / "report.html").read_text()).startswith("finished")
    assert "15 of 150 rows failed" in said
    assert len((tmp_path / "out.jsonl").read_text().splitlines()) == ROWS
    assert "Done already: 150 rows" in run()[1]


def removing_first(folder: Path) -> Callable[..., None]:
    from pybatch.cli.run import answer

    def answering(*arguments: object, **named: object) -> None:
        folder.rmdir()
        answer(*arguments, **named)  # type: ignore[arg-type]

    return answering


def test_a_terminal_shows_what_goes_on(tiny_model: Path, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.jsonl"
    write_rows(prompts)
    ours, theirs = pty.openpty()
    command = [*COMMAND, "run", prompts, "-o", tmp_path / "out.jsonl", "--model", tiny_model, *FAST]
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))
    with subprocess.Popen(command, stderr=theirs, env={**os.environ, "TERM": "xterm"}) as process:
        os.close(theirs)
        shown = b""
        with suppress(OSError):  # which Linux raises at the end of a terminal
            while part := os.read(ours, 65536):
                shown += part
    os.close(ours)
    assert process.returncode == 1
    text = shown.decode()
    assert re.search(r"\d+/150 rows \(15 failed, 27 cached\)", text)
    assert re.search(r"[\d,]+ tokens · [\d,]+ tok/s · KV \d+% · \d:\d\d left", text)


def test_a_profile_has_the_parts_of_the_steps(cli: Cli, tiny_model: Path, tmp_path: Path) -> None:
    rows, trace = tmp_path / "rows.jsonl", tmp_path / "trace.json"
    write_rows(rows)
    flags = ("run", rows, "-o", tmp_path / "out.jsonl", "--model", tiny_model, "--profile", trace, *FAST)
    assert cli(*flags, "--profile-steps", "3").code == 1  # every tenth row is bad
    named = [
        each["name"] for each in json.loads(trace.read_text())["traceEvents"] if each.get("cat") == "user_annotation"
    ]
    assert {name: named.count(name) for name in ("step", "schedule", "run", "sample", "update")} == dict.fromkeys(
        ("step", "schedule", "run", "sample", "update"), 3
    )
    for wrong, says in (
        (("--dry-run",), "--profile: traces the steps of this process"),
        (("--json", trace), "--profile needs one of its own"),
    ):
        ran = cli(*flags, *wrong)
        assert (ran.code, says in ran.err) == (2, True), ran.err
