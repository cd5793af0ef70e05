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
def server(smollm2_path: Path) -> Iterator[Server]:
    with serving(smollm2_path, "--quantization", "int8", "--served-model-name", "smollm2-135m") as server:
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
