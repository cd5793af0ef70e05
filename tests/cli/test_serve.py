"""pybatch serve as a process: its exit codes, and how it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from cli_command import COMMAND
from live_server import Server, serving

HELLO: list[Any] = [{"role": "user", "content": "Hello"}]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--host", "0.0.0.0"], "host: '0.0.0.0' can be reached from other machines: expected an API key"),
        (["--ssl-keyfile", "key.pem"], "ssl_certfile: expected one, since ssl_keyfile is given"),
        (["--ssl-certfile", "no-such.pem"], "no-such.pem: No such file or directory"),
        (["--api-key-file", "no-such-file"], "no-such-file: No such file or directory"),
        (["--data-dir", __file__], f"data_dir: expected a folder to write to, got {__file__}: File exists"),
        (["--profile", __file__], f"profile: expected a folder to write to, got {__file__}: File exists"),
        (["--user-weights", '{"a": 0}'], "user_weights: expected a dict of users and numbers above 0"),
        (["--max-running-batches", "2147483648"], "max_running_batches: expected at most 64, got 2147483648"),
        (["--requests-per-minute", "0"], "requests_per_minute: expected an integer of at least 1, got 0"),
    ],
)
def test_what_cannot_be_served_so_is_told_before_the_model_loads(flags: list[str], message: str) -> None:
    done = subprocess.run(
        [*COMMAND, "serve", "no-such-model", "--port", "0", *flags],
        capture_output=True,
        text=True,
        env={**os.environ, "COLUMNS": "200"},
    )
    assert done.returncode == 2
    assert message in done.stderr
    assert "no-such-model" not in done.stderr
    assert "Traceback" not in done.stderr


class Streaming:
    """A long stream, read on a thread."""

    def __init__(self, server: Server, key: str) -> None:
        self.client = openai.OpenAI(base_url=f"{server.url}/v1", api_key=key, max_retries=0)
        self.reasons: list[str | None] = []
        self.error: Exception | None = None
        self.begun = threading.Event()
        self.thread = threading.Thread(target=self.read)
        self.thread.start()
        assert self.begun.wait(60)

    def read(self) -> None:
        try:
            for chunk in self.client.completions.create(
                model="tiny", prompt=["a"] * 16, max_tokens=400, extra_body={"ignore_eos": True}, stream=True
            ):
                self.begun.set()
                self.reasons += [choice.finish_reason for choice in chunk.choices if choice.finish_reason]
        except Exception as error:
            self.error = error


def test_sigterm_lets_streams_end_and_a_second_signal_does_not(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PYBATCH_API_KEY", "sk-env alice")
    flags = ["--served-model-name", "tiny", "--data-dir", str(tmp_path / "data")]
    with serving(tiny_model, *flags) as server:
        assert httpx.get(f"{server.url}/v1/models").status_code == 401
        stream = Streaming(server, "sk-env")
        server.process.terminate()
        stream.thread.join(60)
        assert stream.error is None
        assert stream.reasons == ["length"] * 16
        assert server.process.wait(20) == 0
        assert "Traceback" not in "".join(server.lines)
    with serving(tiny_model, *flags) as server:
        stream = Streaming(server, "sk-env")
        server.process.terminate()
        while httpx.get(f"{server.url}/ready").status_code == 200:
            time.sleep(0.01)
        server.process.send_signal(signal.SIGINT)
        assert server.process.wait(5) == 128 + signal.SIGTERM  # the first one's, as of the other commands
        stream.thread.join(60)
        assert stream.error is not None


ENGINE_ENDS = """
import threading
from pybatch.api.engine_thread import EngineThread
from pybatch.cli import main

make = EngineThread.__init__

def fail():
    raise MemoryError("as of a fault of the machine")

def made(self, session):
    make(self, session)
    threading.Timer(1, self._commands.put, [fail]).start()

EngineThread.__init__ = made
main()
"""


def test_a_server_whose_engine_ends_ends_too(tiny_model: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-P", "-c", ENGINE_ENDS, "serve", tiny_model, "--port", "0", "--num-kv-blocks", "64"]
    done = subprocess.run(
        [*command, "--threads", "1", "--data-dir", tmp_path],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "COLUMNS": "200"},
    )
    assert done.returncode == 3
    assert "serve: the engine's thread has ended: MemoryError: as of a fault of the machine" in done.stderr
