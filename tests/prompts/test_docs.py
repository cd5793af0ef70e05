"""docs/prompts.md: its files are read, its commands run, and its Python says what stands there."""

from __future__ import annotations

import doctest
import re
import shlex
from pathlib import Path

import pytest
from cli_command import Cli

PAGE = (Path(__file__).resolve().parents[2] / "docs/prompts.md").read_text()
FILES = re.compile(r"`([\w./]+)`:\n\n```\w*\n(.*?)```\n", re.DOTALL)


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The page's files."""
    monkeypatch.chdir(tmp_path)
    for name, text in FILES.findall(PAGE):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def test_the_commands_run(cli: Cli, tiny_model: Path, folder: Path) -> None:
    commands = [line for block in blocks("sh") for line in block.splitlines()]
    assert len(commands) == 5
    for line in commands:
        _, *arguments = shlex.split(line)
        model = ["--model", str(tiny_model), "--num-kv-blocks", "64", "--max-tokens", "8"]
        ran = cli(*arguments, *(model if {"run", "try"} & {*arguments} else []))
        assert ran.code == 0, (line, ran.err)
    assert (folder / "verdicts.jsonl.1-summary.jsonl").exists()


def test_the_python_says_what_stands_there(tiny_model: Path, folder: Path) -> None:
    runner = doctest.DocTestRunner()
    names: dict[str, object] = {}
    for block in blocks("python"):
        text = block.replace('run_job(rows, "smollm2-135m"', f'run_job(rows, "{tiny_model}"')
        example = doctest.DocTestParser().get_doctest(text, names, "docs/prompts.md", None, None)
        runner.run(example, clear_globs=False)
        names = example.globs
    assert runner.summarize(verbose=False).failed == 0
    assert runner.tries > 10


def test_the_chains_are_the_same_in_both_languages(folder: Path) -> None:
    from pybatch.prompts import load

    plain, promptl = load("chain.prompt"), load("chain.promptl")
    assert [step.name for step in plain.steps] == [step.name for step in promptl.steps] == ["summary", "response"]
    assert plain.variables == promptl.variables == ("text",)
