"""pybatch run --dry-run and --preview."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
from cli_command import FAST, Cli, on_terminal

from pybatch import LLM
from pybatch.api.session import Session
from pybatch.cli.answering import going_on
from pybatch.cli.question import Asker
from pybatch.tune import calibration


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(calibration, "ROUNDS", 1)
    return tmp_path / "cache" / "pybatch" / "calibration.json"


def write(path: Path, *rows: dict[str, Any] | str) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    return write(tmp_path / "prompts.jsonl", *({"prompt": f"Say {i}"} for i in range(6)))


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


# ---- --dry-run ----


def test_a_dry_run_tells_what_a_job_takes_and_writes_nothing(
    cli: Cli, tiny_model: Path, prompts: Path, cache: Path
) -> None:
    before = sorted(prompts.parent.iterdir())
    told = prompts.parent / "told.json"
    prices = ("--price-per-hour", "2", "--json", told)
    ran = cli("run", prompts, "--dry-run", "--model", tiny_model, "--ignore-eos", *prices, *FAST)
    assert ran.code == 0
    assert "cost a million output tokens" in ran.out
    fields = json.loads(told.read_text())
    assert fields["cost"]["dollars"] == pytest.approx(2 * fields["seconds"] / 3600)
    told.unlink()
    llm = LLM(tiny_model, num_kv_blocks=8, max_model_len=64)
    chats = [[{"role": "user", "content": f"Say {i}"}] for i in range(6)]
    tokens = sum(len(output.prompt_token_ids) for output in llm.chat(chats, use_tqdm=False))
    shown = " ".join(ran.out.split())
    for words in ("rows │ 6", f"prompt tokens │ {tokens}", "about 48", "6 rows answered", "time, expected"):
        assert words in shown
    assert "Prompt 1, as the model sees it:\n<|role|>user: Say 0<|end|><|role|>assistant: \n" in ran.out
    assert ran.out.count("as the model sees it") == 3
    assert cache.exists()
    assert sorted(prompts.parent.iterdir()) == sorted([*before, cache.parent.parent])

    def fail(engine: object) -> None:
        raise AssertionError("measured again")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(calibration, "measure", fail)
        again = cli("run", prompts, "-o", prompts.parent / "out.jsonl", "--dry-run", "--model", tiny_model, *FAST)
    assert again.code == 0
    assert not (prompts.parent / "out.jsonl").exists()


def test_a_dry_run_with_bad_rows_tells_of_them(cli: Cli, tiny_model: Path, tmp_path: Path) -> None:
    rows = write(tmp_path / "in.jsonl", {"prompt": "\x1b[2Jfine"}, "{", {"prompt": "x" * 1000}, {"no": 1})
    ran = cli("run", rows, "--dry-run", "--model", tiny_model, *FAST)
    assert ran.code == 1
    assert "line 2: not valid JSON" in ran.err
    assert "line 3: prompt: 1" in ran.out  # its length is known only to the tokenizer
    for words in ("bad: invalid json line", "bad: context length exceeded", "bad: missing required parameter"):
        assert words in ran.out
    assert "\x1b" not in ran.out
    assert "\\x1b[2Jfine" in ran.out


def test_a_dry_run_of_a_stream_reads_it_once(cli: Cli, tiny_model: Path) -> None:
    read_end, write_end = os.pipe()
    os.write(write_end, b'{"prompt": "Say it"}\n{\n')
    os.close(write_end)
    saved = os.dup(0)
    os.dup2(read_end, 0)
    try:
        ran = cli("run", "-", "--dry-run", "--model", tiny_model, *FAST)
    finally:
        os.dup2(saved, 0)
        os.close(saved)
        os.close(read_end)
    assert ran.code == 1
    assert "line 2: not valid JSON" in ran.out
    assert "Prompt 1" in ran.out


def test_a_dry_run_tells_what_is_left_and_writes_nothing(cli: Cli, tiny_model: Path, tmp_path: Path) -> None:
    prompts = write(tmp_path / "in.jsonl", *({"prompt": f"Say {i}"} for i in range(5)), {"prompt": "x" * 1000})
    output, answers = tmp_path / "out.jsonl", tmp_path / "answers"
    journal = output.with_name("out.jsonl.journal")
    job = ["run", prompts, "-o", output, "--model", tiny_model, *FAST, "--cache", answers]
    assert cli(*job, "--dry-run").code == 1
    assert not any(path.exists() for path in (output, journal, answers))
    assert cli(*job).code == 1
    lines = journal.read_bytes()
    assert "Done already: 6 rows" in cli(*job, "--dry-run").err
    assert re.search(r"done already +│ +5 ", cli(*job, "--dry-run", "--retry-errors").out)
    anew = cli(*job, "--dry-run", "--fresh").out
    assert "done already" not in anew
    assert re.search(r"found in the cache +│ +5 ", anew)
    other = cli(*job, "--dry-run", "--temperature", "1")
    assert (other.code, "temperature" in other.err) == (2, True)  # as the job itself would be refused
    assert journal.read_bytes() == lines


def test_what_stops_a_dry_run_is_one_line(
    cli: Cli, tiny_model: Path, prompts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: Session) -> None:
        raise MemoryError("no memory for the step")

    monkeypatch.setattr(Session, "step", fail)
    ran = cli("run", prompts, "--dry-run", "--model", tiny_model, *FAST)
    assert ran.code == 3
    assert ran.err == "pybatch: the job cannot be estimated: MemoryError: no memory for the step\n"
    assert ran.out == ""


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--preview", "2"], "--preview: a dry run answers no rows"),
        (["--ray", "auto"], "--ray: a dry run measures this"),
    ],
)
def test_what_a_dry_run_has_no_use_for_is_refused(cli: Cli, prompts: Path, flags: list[str], words: str) -> None:
    ran = cli("run", prompts, "--dry-run", *flags)
    assert ran.code == 2
    assert ran.err.startswith(f"pybatch: {words}")


# ---- --preview ----


def test_a_preview_shows_the_first_rows_and_the_job_goes_on(
    cli: Cli, tiny_model: Path, prompts: Path, tmp_path: Path
) -> None:
    plain, output = tmp_path / "plain.jsonl", tmp_path / "out.jsonl"
    assert cli("run", prompts, "-o", plain, "--model", tiny_model, *FAST).code == 0
    ran = cli("run", prompts, "-o", output, "--preview", "2", "--model", tiny_model, *FAST)
    assert ran.code == 0
    assert output.read_bytes() == plain.read_bytes()
    shown, _, _ = ran.err.partition("Summary")
    assert shown.count("<|role|>user: Say ") == 2
    for row in read(plain)[:2]:
        assert f"<|role|>user: {row['prompt']}<|end|><|role|>assistant: " in shown
        assert "-> " in shown
    assert "Go on" not in shown  # there is nobody to ask


def test_a_preview_shows_what_is_left_of_a_prompt(cli: Cli, tiny_model: Path, tmp_path: Path) -> None:
    row = {"prompt": "x" * 100 + "y" * 100, "truncate_prompt_tokens": 110}
    rows = write(tmp_path / "in.jsonl", row)
    ran = cli("run", rows, "-o", tmp_path / "out.jsonl", "--preview", "1", "--model", tiny_model, *FAST)
    assert ran.code == 0
    shown, _, _ = ran.err.partition("->")
    assert "y" * 97 in shown
    assert "x" not in shown.partition("---\n")[2]


def test_a_preview_of_a_row_that_fails_shows_why(cli: Cli, tiny_model: Path, tmp_path: Path) -> None:
    rows = write(tmp_path / "in.jsonl", {"prompt": "x" * 1000}, {"prompt": "Say it"})
    ran = cli("run", rows, "-o", tmp_path / "out.jsonl", "--preview", "1", "--model", tiny_model, *FAST)
    assert ran.code == 1
    assert "error: prompt: 1" in ran.err


def test_a_preview_of_a_row_of_several_prompts_shows_each_before_its_answers(
    cli: Cli, tiny_model: Path, tmp_path: Path
) -> None:
    body = {"model": "m", "prompt": ["Say x", "Say y"], "n": 2}
    rows = write(tmp_path / "in.jsonl", {"custom_id": "a", "method": "POST", "url": "/v1/completions", "body": body})
    ran = cli("run", rows, "-o", tmp_path / "out.jsonl", "--preview", "1", "--model", tiny_model, *FAST)
    assert ran.code == 0
    shown, _, _ = ran.err.partition("Summary")
    lines = [line for line in shown.splitlines() if line.startswith(("Say", "->"))]
    assert [line[:5] if line.startswith("Say") else "->" for line in lines] == [
        *("Say x", "->", "->"),
        *("Say y", "->", "->"),
    ]


def test_on_a_terminal_a_preview_asks_and_no_loses_nothing(tiny_model: Path, prompts: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    job = ["run", prompts, "-o", output, "--model", tiny_model, *FAST]
    code, shown = on_terminal(*job, "--preview=2", typed="n\n")
    assert code == 0
    assert "Go on with the other rows? [Y/n]" in shown
    assert "Stopped: 2 rows are done and saved" in shown
    (command,) = [line for line in shown.splitlines() if line.startswith("To go on: ")]
    assert "--preview" not in command
    assert [row["row"] for row in read(output)] == [0, 1]

    code, shown = on_terminal(*job, "--preview=3", typed="y\n")
    assert code == 0
    assert "2 rows are done" in shown
    assert "Go on with the other rows? [Y/n]" in shown
    assert [row["row"] for row in read(output)] == list(range(6))


def test_after_the_last_row_there_is_nothing_to_ask(
    cli: Cli, tiny_model: Path, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: Asker, *arguments: object) -> bool:
        raise AssertionError("asked")

    monkeypatch.setattr(Asker, "agrees", fail)
    output = tmp_path / "out.jsonl"
    assert cli("run", prompts, "-o", output, "--preview", "6", "--model", tiny_model, *FAST).code == 0
    assert len(read(output)) == 6
    assert cli("run", prompts, "-o", output, "--fresh", "--preview", "5", "--model", tiny_model, *FAST).code == 3


def test_the_command_that_goes_on_shows_no_preview() -> None:
    given = ["run", "in.jsonl", "--preview", "3", "-o", "out", "--preview=4", "--fresh", "--seed", "1"]
    assert going_on(given) == ["run", "in.jsonl", "-o", "out", "--seed", "1"]
