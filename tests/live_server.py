"""A live server as a process."""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from cli_command import COMMAND

import pybatch

SECONDS = 120  # to start, and to end


@dataclass
class Server:
    """url: with the port. lines: what it has printed on stderr."""

    process: subprocess.Popen[str]
    url: str = ""
    lines: list[str] = field(default_factory=list)

    def stop(self) -> int:
        """Ends it as a service manager does. Returns the exit code."""
        self.process.terminate()
        return self.process.wait(SECONDS)


@contextmanager
def serving(model: Path, *flags: str) -> Iterator[Server]:
    """Raises AssertionError, with what it has printed, if it ends before it listens."""
    command = [*COMMAND, "serve", str(model), "--port", "0", "--threads", "1", "--num-kv-blocks", "256", *flags]
    environment = {**os.environ, "PYTHONPATH": str(Path(pybatch.__file__).parents[1]), "PYTHONSAFEPATH": "1"}
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
    server = Server(process)
    listening = threading.Event()

    def read() -> None:
        assert process.stderr is not None
        for line in process.stderr:
            server.lines.append(line)
            if line.startswith("Serving "):
                server.url = line.split()[-1]
                listening.set()
        listening.set()

    reader = threading.Thread(target=read)
    reader.start()
    try:
        listening.wait(SECONDS)
        assert server.url, "".join(server.lines)
        yield server
    finally:
        process.kill()
        process.wait()
        reader.join()
