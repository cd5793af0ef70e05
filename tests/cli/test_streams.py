from __future__ import annotations

import json
import os
import pty
import subprocess
from pathlib import Path

import pytest
from cli_command import COMMAND, FAST

from pybatch.cli.streams import Unfailing, printable, shortened

ASCII = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0", "PYTHONIOENCODING": "ascii"}


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain, é, 你, [bold]", "plain, é, 你, [bold]"),
        ("\x1b[31mred\x07", "\\x1b[31mred\\x07"),
        ("a\nb\tc", "a\\nb\tc"),
        ("\x9b2J", "\\x9b2J"),
        ("\u202etxt.exe", "\\u202etxt.exe"),
    ],
)
def test_what_a_terminal_obeys_is_escaped(text: str, shown: str) -> None:
    assert printable(text, keep="\t") == shown


def test_a_message_that_nobody_reads_does_not_hold_up_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    read, write = os.pipe()
    monkeypatch.setattr(Unfailing, "PATIENCE", 0.05)
    stream = Unfailing(write)
    assert stream.write(b"x" * 1_000_000) == 1_000_000
    assert os.read(read, 2) == b"xx"
    os.close(read)
    assert stream.write(b"to nobody") == 9
    os.close(write)


def shell(command: str, *arguments: object, **options: object) -> subprocess.CompletedProcess[str]:
    """Runs `pybatch ARGUMENTS` with the redirections of `command`, in which "$@" stands for it."""
    return subprocess.run(
        ["bash", "-c", command, "bash", *COMMAND, *map(str, arguments)],
        capture_output=True,
        text=True,
        **options,  # type: ignore[call-overload]
    )


def test_a_job_needs_no_standard_streams(tiny_model: Path, tmp_path: Path) -> None:
    prompts = tmp_path / "in.jsonl"
    prompts.write_text('{"prompt": "Say 1"}\n{"prompt": "Say 2"}\n')
    for redirections in ("<&- >&- 2>&-", "2>/dev/full"):
        results = tmp_path / "out.jsonl"
        ran = shell(f'"$@" {redirections}', "run", prompts, "-o", results, "--overwrite", "--model", tiny_model, *FAST)
        assert (ran.returncode, ran.stdout, ran.stderr) == (0, "", "")
        assert [json.loads(line)["prompt"] for line in results.read_text().splitlines()] == ["Say 1", "Say 2"]


def test_closed_streams_that_are_needed_are_one_line(tmp_path: Path) -> None:
    prompts = tmp_path / "in.jsonl"
    prompts.write_text('{"prompt": "Say 1"}\n')
    ran = shell('"$@" <&-', "run", "-", "-o", tmp_path / "out")
    assert (ran.returncode, ran.stderr) == (2, "pybatch: standard input: Bad file descriptor\n")
    ran = shell('"$@" >&-', "run", prompts, "-o", "-")
    assert (ran.returncode, ran.stderr) == (2, "pybatch: standard output: Bad file descriptor\n")
    ran = shell('"$@" >/dev/full', "--version")
    assert (ran.returncode, ran.stderr) == (3, "pybatch: standard output: No space left on device\n")
    ran = shell('"$@" | true; exit ${PIPESTATUS[0]}', "run", "--help")
    assert ran.returncode in (0, 1, 141)
    assert ran.stderr == ""


def test_chat_replaces_what_the_terminal_cannot_show(tiny_model: Path) -> None:
    chat = ["chat", "--model", tiny_model, *FAST]
    ran = shell('printf "h\\351 \\303\\251" | "$@"', *chat, "--max-tokens", "40", env={**os.environ, **ASCII})
    assert (ran.returncode, ran.stderr) == (0, "")
    assert ran.stdout.isascii()
    assert "?" in ran.stdout
    ran = shell('echo hi | "$@" >&- <&-', *chat)
    assert (ran.returncode, ran.stderr) == (2, "pybatch: standard input: Bad file descriptor\n")


def test_a_terminal_gets_no_control_characters_of_a_model_or_a_name(tiny_model: Path) -> None:
    ours, theirs = pty.openpty()
    command = [*COMMAND, "run", "missing \x1b[31m[bold]", "-o", "out"]
    assert subprocess.run(command, stdin=theirs, stdout=theirs, stderr=theirs).returncode == 2
    os.close(theirs)
    shown = os.read(ours, 65536)
    os.close(ours)
    assert shown == b"pybatch: missing \\x1b[31m[bold]: there are no files that match\r\n"


def test_a_long_text_is_shown_without_its_middle() -> None:
    assert shortened("x" * 2000) == "x" * 2000
    text = shortened("a" * 1500 + "b" * 1501)
    assert text == "a" * 1000 + " [... 1,001 characters ...] " + "b" * 1000
