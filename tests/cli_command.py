"""The pybatch command as a process."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

COMMAND = [sys.executable, "-P", "-c", "from pybatch.cli import main; main()"]
FAST = ["--num-kv-blocks", "128", "--max-tokens", "8", "--temperature", "0", "--threads", "1"]


class Ran(NamedTuple):
    """What a command has done. out, err: what it printed."""

    code: int
    out: str
    err: str


Cli = Callable[..., Ran]
"""The fixture `cli`: runs the command with these arguments in this process."""


def on_terminal(*arguments: str | Path, typed: str | None = None) -> tuple[int, str]:
    """Runs the command with standard error, and standard input and output if something is ``typed``, on a terminal.
    Returns the exit code and what the terminal showed."""
    ours, theirs = pty.openpty()
    inout = subprocess.DEVNULL if typed is None else theirs
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "120"}
    process = subprocess.Popen([*COMMAND, *arguments], stdin=inout, stdout=inout, stderr=theirs, env=environment)
    os.close(theirs)
    if typed is not None:
        os.write(ours, typed.encode())
    shown = b""
    while True:
        try:
            piece = os.read(ours, 65536)
        except OSError:  # Linux's way to say that the other end is closed
            break
        if not piece:
            break
        shown += piece
    os.close(ours)
    return process.wait(), shown.decode(errors="replace")
