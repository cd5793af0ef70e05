"""Every program in examples/ runs as it stands."""

import io
import runpy
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from live_server import Server, serving

FOLDER = Path(__file__).resolve().parent.parent / "examples"
EXAMPLES = sorted(FOLDER.glob("*.py"))
CLIENTS = [FOLDER / "chat_service.py"]
"""They talk to a server that runs already."""


@pytest.fixture(scope="module")
def server(smollm2_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    flags = ["--quantization", "int8", "--served-model-name", "smollm2-135m"]
    with serving(smollm2_path, *flags, "--data-dir", str(tmp_path_factory.mktemp("data"))) as server:
        yield server


def run(path: Path, *arguments: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", [str(path), *arguments])
    runpy.run_path(str(path), run_name="__main__")


def test_there_is_an_example_of_each_kind() -> None:
    assert {path.stem for path in EXAMPLES} >= {"offline", "chat", "async_requests", "streaming", "job", "chat_service"}


@pytest.mark.parametrize("path", [path for path in EXAMPLES if path not in CLIENTS], ids=lambda path: path.stem)
def test_an_example_runs(
    path: Path, smollm2_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    run(path, monkeypatch=monkeypatch)
    printed = capfd.readouterr().out
    assert printed.strip()
    assert "error" not in printed.lower()


def test_the_chat_streams_answers_that_know_what_was_said_before(
    server: Server, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("What is the capital of France?\nAnd of Italy?\n"))
    run(FOLDER / "chat_service.py", server.url, monkeypatch=monkeypatch)
    first, second = (line for line in capfd.readouterr().out.splitlines() if line.startswith("[first after "))
    assert int(first.split("; ")[1].split()[0]) > 1
    assert int(second.split("; ")[2].split()[0]) > 16, "the second prompt begins as the first one"


def test_documents_go_through_a_job_and_through_a_server(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = FOLDER / "documents"
    names = [path.stem for path in sorted((folder / "letters").glob("*.txt"))]
    run(folder / "with_run.py", str(folder / "letters"), str(tmp_path / "summaries.jsonl"), monkeypatch=monkeypatch)
    by_run = capfd.readouterr().out.splitlines()
    run(folder / "through_server.py", server.url, monkeypatch=monkeypatch)
    *by_server, last = capfd.readouterr().out.splitlines()
    assert last == f"completed: {len(names)} of {len(names)} answered"
    for lines in (by_run, by_server):
        answers = dict(line.split(": ", 1) for line in lines if line.split(": ")[0] in names)
        assert list(answers) == names
        assert all(len(answer) > 20 for answer in answers.values())
    for file in ("with_run.py", "through_server.py", "letters"):
        assert f" {file}" in (folder / "README.md").read_text()
    assert by_run == by_server, "the server's batches are jobs"
