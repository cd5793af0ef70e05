"""What SIGINT (Ctrl-C), SIGTERM and SIGHUP do to a command: end it at once, or a job between two steps."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, NoReturn

from pybatch.cli.streams import Unfailing

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
SHOW_CURSOR = b"\x1b[?25h"  # which a progress bar has hidden


def exit_code(signum: int) -> int:
    """As a shell reports it."""
    return 128 + signum


@contextmanager
def handled(handler: Any, signums: Iterable[signal.Signals] = ENDING) -> Iterator[None]:
    """Sets the handler inside the block. A signal that is ignored (by nohup) stays ignored. Does nothing off the main
    thread, where Python delivers no signals."""
    before = {}
    if threading.current_thread() is threading.main_thread():
        before = {signum: signal.getsignal(signum) for signum in signums}
    before = {signum: old for signum, old in before.items() if old is not signal.SIG_IGN}
    try:
        for signum in before:
            signal.signal(signum, handler)
        yield
    finally:
        for signum, old in before.items():
            signal.signal(signum, old)


def leave(signum: int, words: str) -> NoReturn:
    """Says so on standard error, and ends the process without unwinding: a KeyboardInterrupt inside an import or a
    library's C++ may come out as another exception, with a traceback."""
    terminal = SHOW_CURSOR + b"\n" if os.isatty(2) else b""  # behind ^C, or a progress bar
    Unfailing(2).write(terminal + f"{words}\n".encode(errors="replace"))
    os._exit(exit_code(signum))


@contextmanager
def ending_at_once(words: str | Callable[[], str] = "Interrupted.") -> Iterator[None]:
    """A signal ends the process. words: what is said then; a function is called for it, and may clean up."""

    def end(signum: int, frame: FrameType | None) -> None:
        said = "Interrupted."
        try:
            said = words if isinstance(words, str) else words()
        finally:
            leave(signum, said)

    with handled(end):
        yield


class Stop:
    """The signal that asked a job to end, if one has come."""

    def __init__(self, at_once: str) -> None:
        self.signum: int | None = None
        self._at_once = at_once

    def requested(self) -> bool:
        return self.signum is not None

    def __call__(self, signum: int, frame: FrameType | None) -> None:
        if self.signum is not None:
            leave(self.signum, self._at_once)
        self.signum = signum


@contextmanager
def ending_in_order(at_once: str) -> Iterator[Stop]:
    """The first signal is only noted, for the block to check; a second one says `at_once` and ends the process."""
    stop = Stop(at_once)
    with handled(stop):
        yield stop


@contextmanager
def interrupting() -> Iterator[None]:
    """Ctrl-C raises KeyboardInterrupt."""
    with handled(signal.default_int_handler, [signal.SIGINT]):
        yield
