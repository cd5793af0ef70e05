"""Standard streams that are closed, full or of another encoding than the text."""

from __future__ import annotations

import io
import os
import re
import select
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

# Control characters and those that change the direction of text: a terminal obeys them.
_OBEYED = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")


def printable(text: str, keep: str = "") -> str:
    """The text with control characters escaped; a model's files or a row may contain them."""
    return _OBEYED.sub(lambda found: found[0] if found[0] in keep else ascii(found[0])[1:-1], text)


def shortened(text: str, most: int = 2000) -> str:
    """A long text without its middle, told by its length."""
    if len(text) <= most:
        return text
    return f"{text[: most // 2]} [... {len(text) - most // 2 * 2:,} characters ...] {text[len(text) - most // 2 :]}"


@contextmanager
def standard_streams_mended() -> Iterator[None]:
    """Inside the block, writing to standard error never fails, and characters that a stream's encoding lacks are
    replaced.

    A closed stream is opened on the null device, in the wrong direction, so that using it still fails. Otherwise the
    next file that is opened would get its number, and what is printed.
    """
    before = sys.stdin, sys.stdout, sys.stderr
    for fd, flags in enumerate((os.O_WRONLY, os.O_RDONLY, os.O_RDONLY)):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, flags)  # gets the lowest number that is free, which is fd
    if sys.stdin is None:
        sys.stdin = open(0, closefd=False)  # noqa: SIM115
    if sys.stdout is None:
        sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
    if sys.stderr is None or sys.stderr is sys.__stderr__:
        encoding = "utf-8" if sys.stderr is None else sys.stderr.encoding
        sys.stderr = io.TextIOWrapper(Unfailing(2), encoding=encoding, errors="backslashreplace", write_through=True)
    for stream in (sys.stdin, sys.stdout):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    try:
        yield
    finally:
        sys.stdin, sys.stdout, sys.stderr = before


class Unfailing(io.RawIOBase):
    """Drops what cannot be written (the disk is full, the terminal closed, nobody reads the pipe) instead of raising or
    waiting for ever."""

    PATIENCE = 5.0  # seconds

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._fd

    def isatty(self) -> bool:
        return os.isatty(self._fd)

    def write(self, data: bytes) -> int:  # type: ignore[override]
        left = memoryview(data)
        with suppress(OSError):
            while left and select.select([], [self._fd], [], self.PATIENCE)[1]:
                left = left[os.write(self._fd, left[: select.PIPE_BUF]) :]  # so much never blocks
        return len(data)


def flush_output() -> None:
    """Raises OSError if what was printed cannot be written; it is then dropped."""
    try:
        sys.stdout.flush()
    except OSError:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())  # the interpreter flushes once more at its end
        os.close(null)
        raise
