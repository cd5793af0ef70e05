"""Jobs that are cut and go on."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import threading
import time
from pathlib import Path

import pytest
from cli_command import COMMAND, Cli, Ran

from pybatch.api.outcomes import Failure

ROWS = 200
SAMPLED = ["--temperature", "1", "--max-tokens", "24", "--ignore-eos", "--num-kv-blocks", "128", "--max-num-seqs", "4"]
SAMPLED += ["--threads", "1"]


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.jsonl"
    rows = [{"prompt": f"Say {i % 150}", **({"temperature": 0} if i % 2 else {}), "n": 1 + i % 3} for i in range(ROWS)]
    lines = [json.dumps(row) for row in rows]
    lines[17] = '{"prompt": "cut'
    path.write_text("\n".join(lines) + "\n")
    return path


def journaled(results: Path) -> dict[int, bytes]:
    """The rows in a journal by their numbers; the last record of each."""
    journal = results.with_name(f"{results.name}.journal")
    lines = journal.read_bytes().splitlines(keepends=True)
    whole = [line[9:].split(b" ", 1) for line in lines if line.endswith(b"\n") and not line[9:].startswith(b"{")]
    return {int(index): rest for index, rest in whole}


@pytest.mark.parametrize("order", [[], ["--unordered"]])
def test_a_job_that_is_killed_at_random_moments_gives_what_an_uninterrupted_one_gives(
    cli: Cli, tiny_model: Path, prompts: Path, tmp_path: Path, order: list[str]
) -> None:
    whole, results = tmp_path / "whole.jsonl", tmp_path / "cut.jsonl"
    arguments = ["--model", tiny_model, *SAMPLED]
    assert cli("run", prompts, "-o", whole, *arguments).code == 1
    kills, moments = 0, random.Random(len(order))
    before: dict[int, bytes] = {}
    while kills < (5 if not order else 2):
        command = [*COMMAND, "run", prompts, "-o", results, *arguments, *order]
        with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
            goal = len(before) + moments.randint(1, 15)
            while process.poll() is None and (not (tmp_path / "cut.jsonl.journal").exists() or size(results) < goal):
                time.sleep(0.002)
            assert process.poll() is None, "it was done before it was killed"
            time.sleep(moments.random() * 0.02)
            process.send_signal(signal.SIGKILL)
        kills += 1
        after = journaled(results)
        assert {index: after[index] for index in before} == before  # nothing is lost, and nothing is run again
        before = after
        assert order or not results.exists()
    code, _, err = cli("run", prompts, "-o", results, *arguments, *order)
    assert code == 1
    assert f"Going on: {len(before)} rows are done" in err
    lines = results.read_bytes().splitlines(keepends=True)
    if order:
        lines.sort(key=lambda line: json.loads(line)["row"])
    assert b"".join(lines) == whole.read_bytes()
    assert len(lines) == ROWS
    assert results.with_suffix(".errors.jsonl").read_bytes() == whole.with_suffix(".errors.jsonl").read_bytes()


def test_a_job_that_goes_on_finds_its_prefix_on_the_disk(cli: Cli, tiny_model: Path, tmp_path: Path) -> None:
    prompts, whole, results, folder = (tmp_path / name for name in ("in.jsonl", "whole.jsonl", "out.jsonl", "prefixes"))
    prompts.write_text("".join(json.dumps({"prompt": f"Say {i}"}) + "\n" for i in range(60)))
    arguments = ["--model", tiny_model, *SAMPLED, "--system", "Answer in one short sentence, and be kind. " * 3]
    assert cli("run", prompts, "-o", whole, *arguments).code == 0
    cut = ["run", prompts, "-o", results, *arguments, "--prefix-cache-dir", folder]
    with subprocess.Popen([*COMMAND, *cut], stderr=subprocess.DEVNULL) as process:
        while process.poll() is None and (not (tmp_path / "out.jsonl.journal").exists() or size(results) < 8):
            time.sleep(0.002)
        assert process.poll() is None, "it was done before it was killed"
        process.send_signal(signal.SIGKILL)
    blocks = len(list(folder.glob("*/*.kv")))
    assert blocks >= 2
    code, _, err = cli(*cut)
    assert code == 0
    (told,) = re.findall(r"prefix hits .* of prompt tokens, ([\d,]+) of them from disk", err)
    assert int(told.replace(",", "")) == 16 * blocks
    assert results.read_bytes() == whole.read_bytes()


def size(results: Path) -> int:
    try:
        return len(journaled(results))
    except (ValueError, IndexError):  # a line is being written
        return 0


def test_a_finished_job_is_not_run_again(cli: Cli, tiny_model: Path, tmp_path: Path) -> None:
    prompts, results = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    prompts.write_text('{"prompt": "Say 1"}\n{"prompt": "Say 2"}\n')
    arguments = ["run", prompts, "-o", results, "--model", tiny_model, *SAMPLED]
    assert cli(*arguments).code == 0
    first, changed = results.read_bytes(), results.stat().st_mtime_ns
    code, _, err = cli(*arguments)
    assert (code, err) == (0, f"Done already: 2 rows in {results}. --fresh starts over.\n")
    assert results.stat().st_mtime_ns == changed
    assert cli(*arguments, "--fresh").code == 0
    assert results.read_bytes() == first
    assert results.stat().st_mtime_ns != changed


def test_another_job_is_refused_with_what_differs(cli: Cli, tiny_model: Path, tmp_path: Path) -> None:
    prompts, results = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    prompts.write_text('{"prompt": "Say 1"}\n')
    arguments = ["run", prompts, "-o", results, "--model", tiny_model, *SAMPLED]
    assert cli(*arguments, "--system", "Be brief.").code == 0
    before = results.read_bytes()
    prompts.write_text('{"prompt": "Say 2"}\n')
    code, _, err = cli(*arguments, "--seed", "7", "--quantization", "int8")
    assert code == 2
    assert f"{results}.journal is of another job; --fresh starts over" in err
    for name, then, now in (("seed", "-", "7"), ("quantization", "-", "int8"), ("system", "Be brief.", "-")):
        (line,) = (line for line in err.splitlines() if name in line)
        assert [each.strip() for each in line.split("│")[1:4]] == [name, then, now]
    assert "input" in err
    assert results.read_bytes() == before


def test_files_that_are_not_this_jobs_are_left_alone(cli: Cli, tiny_model: Path, tmp_path: Path) -> None:
    prompts, results = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    prompts.write_text('{"prompt": "Say 1"}\n')
    arguments = ["run", prompts, "-o", results, "--model", tiny_model, *SAMPLED]
    for path in (results, tmp_path / "out.errors.jsonl", tmp_path / "out.jsonl.journal"):
        path.write_text("mine\n")
        code, _, err = cli(*arguments)
        assert code == 2
        assert str(path) in err
        assert path.read_text() == "mine\n"
        assert sorted(tmp_path.glob("out*")) == [path]
        path.unlink()
    assert cli(*arguments).code == 0
    results.write_text("changed\n")
    code, _, err = cli(*arguments)
    assert code == 2
    assert results.read_text() == "changed\n"


def test_failed_rows_run_again_when_they_are_asked_to(cli: Cli, tiny_model: Path, tmp_path: Path) -> None:
    prompts, results = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    prompts.write_text('{"prompt": "Say 1"}\n{"prompt": 2}\n{"prompt": "Say 3"}\n')
    arguments = ["run", prompts, "-o", results, "--model", tiny_model, *SAMPLED]
    assert cli(*arguments).code == 1
    whole, errors = results.read_bytes(), tmp_path / "out.errors.jsonl"
    assert errors.read_bytes() == whole.splitlines(keepends=True)[1]
    code, _, err = cli(*arguments)
    assert code == 1
    assert "Done already: 3 rows" in err
    assert "1 of them failed" in err
    code, _, err = cli(*arguments, "--retry-errors")
    assert code == 1
    assert "Going on: 2 rows are done, 1 that failed run again" in err
    assert (results.read_bytes(), errors.read_bytes()) == (whole, whole.splitlines(keepends=True)[1])
    code, _, _ = cli("run", errors, "-o", tmp_path / "again.jsonl", "--model", tiny_model, *SAMPLED)
    assert code == 1
    assert json.loads((tmp_path / "again.jsonl").read_text())["input_error"].startswith("line 2: ")


def test_a_growing_file_loses_the_lines_of_rows_that_run_again(
    cli: Cli, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts, results = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": f"Say {i}"}) + "\n" for i in range(4)))
    arguments = ["run", prompts, "-o", results, "--model", tiny_model, *SAMPLED, "--unordered"]
    with monkeypatch.context() as patch:  # a fault that passes
        patch.setattr("pybatch.jobs.row_runner.outcome_of", lambda *_: Failure("no memory"))
        assert cli(*arguments).code == 1
    assert results.read_text().count("no memory") == 4
    assert cli(*arguments, "--retry-errors").code == 0
    assert sorted(json.loads(line)["row"] for line in results.read_text().splitlines()) == [0, 1, 2, 3]
    assert "error" not in results.read_text()
    assert not (tmp_path / "out.errors.jsonl").exists()


def test_a_row_that_fails_can_end_the_job(cli: Cli, tiny_model: Path, tmp_path: Path) -> None:
    prompts, results = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    prompts.write_text('{"prompt": "Say 1"}\n' + json.dumps({"prompt": "long " * 200}) + "\n")
    arguments = ["run", prompts, "-o", results, "--model", tiny_model, *SAMPLED, "--on-error", "fail"]
    code, _, err = cli(*arguments)
    assert code == 1
    assert "line 2: prompt: " in err.splitlines()[-1]
    assert [json.loads(line)["row"] for line in results.read_text().splitlines()] in ([], [0])
    prompts.write_text('{"prompt": "Say 1"}\n{"no": 1}\n')
    code, _, err = cli(*arguments, "--fresh")
    assert code == 1
    assert err.splitlines()[-1] == "pybatch: --on-error fail: nothing has run"
    assert "line 2: the row has neither" in err


def test_an_error_file_is_a_file_of_its_own(cli: Cli, tiny_model: Path, tmp_path: Path) -> None:
    prompts, results = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    prompts.write_text('{"prompt": "Say 1"}\n{"prompt": 2}\n')
    before = prompts.read_bytes()
    arguments = ["run", prompts, "-o", results, "--model", tiny_model, *SAMPLED, "--fresh", "--error-file"]
    (tmp_path / "link").symlink_to(results)
    for errors, message in (
        (results, "is the file of the results"),
        (tmp_path / "link", "is the file of the results"),
        (tmp_path / "out.jsonl.journal", "is the file of the journal"),
        (prompts, "holds the prompts"),
        (tmp_path / "missing" / "errors.jsonl", "No such file or directory"),
    ):
        code, _, err = cli(*arguments, errors)
        assert code == 2
        assert f"{errors}" in err
        assert message in err
        assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jsonl", "link"]
    as_default = tmp_path / "out.errors.jsonl"
    prompts.rename(as_default)
    code, _, err = cli("run", as_default, *arguments[2:-1])
    assert code == 2
    assert "holds the prompts" in err
    assert as_default.read_bytes() == before


def test_rows_that_fail_go_to_the_error_file_of_a_stream_too(cli: Cli, tiny_model: Path, tmp_path: Path) -> None:
    prompts, errors = tmp_path / "in.jsonl", tmp_path / "errors.jsonl"
    prompts.write_text('{"prompt": "Say 1"}\n{"prompt": 2}\n')
    assert cli("run", prompts, "-o", "/dev/null", "--error-file", errors, "--model", tiny_model, *SAMPLED).code == 1
    assert [json.loads(line)["row"] for line in errors.read_text().splitlines()] == [1]


def test_a_growing_file_may_be_a_link_and_is_written_anew_if_it_is_gone(
    cli: Cli, tiny_model: Path, tmp_path: Path
) -> None:
    prompts, results, link = tmp_path / "in.jsonl", tmp_path / "out.jsonl", tmp_path / "link.jsonl"
    prompts.write_text('{"prompt": "Say 1"}\n')
    link.symlink_to(results)
    arguments = ["run", prompts, "-o", link, "--model", tiny_model, *SAMPLED, "--unordered"]
    assert cli(*arguments).code == 0
    first = results.read_bytes()
    assert link.is_symlink()
    assert "Done already" in cli(*arguments).err
    results.unlink()
    assert cli(*arguments).code == 0
    assert results.read_bytes() == first
    results.write_text("changed\n")
    code, _, err = cli(*arguments)
    assert code == 2
    assert "is not as this job left it" in err or "exists" in err
    assert results.read_text() == "changed\n"


def test_a_finished_job_of_a_stream_is_done_for_the_same_rows_alone(cli: Cli, tiny_model: Path, tmp_path: Path) -> None:
    results, fifo = tmp_path / "out.jsonl", tmp_path / "fifo"
    os.mkfifo(fifo)
    rows = ['{"prompt": "Say 1"}\n', '{"prompt": "Say 2"}\n']

    def run(*given: str) -> Ran:
        writer = threading.Thread(target=fifo.write_text, args=["".join(given)])
        writer.start()
        ended = cli("run", fifo, "--input-format", "jsonl", "-o", results, "--model", tiny_model, *SAMPLED)
        writer.join()
        return ended

    assert run(*rows).code == 0
    first = results.read_bytes()
    code, _, err = run(*rows)
    assert (code, err) == (0, f"Done already: 2 rows in {results}. --fresh starts over.\n")
    for other in (rows[:1], rows[::-1], rows * 2):
        code, _, err = run(*other)
        assert code == 2
        assert err == f"pybatch: {fifo}: not the rows that {results} has answers of; --fresh starts over\n"
        assert results.read_bytes() == first
