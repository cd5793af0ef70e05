"""Opens what a job reads and writes; "-" is standard input or output. Nothing that exists is changed here."""

from __future__ import annotations

import os
import signal
import stat
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from pybatch.jobs.result_file import ResultFile

STANDARD = "-"


def open_rows(path: str) -> BinaryIO:
    """Raises OSError, with the path, if it cannot be read."""
    try:
        fd = os.dup(0) if path == STANDARD else os.open(path, os.O_RDONLY)
        os.set_blocking(fd, True)  # a pipe may have been left non-blocking, and would seem to end
        os.read(fd, 0)  # a folder, or a stream that is closed
    except OSError as error:
        error.filename = "standard input" if path == STANDARD else path
        raise
    return open(fd, "rb")


def measure(path: str) -> tuple[int | None, int | None]:
    """The numbers of rows and bytes of a file; None for a stream, which can be read only once."""
    if path == STANDARD or not Path(path).is_file():
        return None, None
    with Path(path).open("rb") as file:
        return sum(1 for line in file if line.strip()), os.fstat(file.fileno()).st_size


def expect_apart(results: str, *, rows: str, others: Iterable[str | None] = ()) -> None:
    """Raises FileExistsError if the results would go into the file that the rows, or others, are read from, by
    whatever name or stream it is reached."""
    output = status(results, stream=1)
    for path in (rows, *others):
        read = None if path is None else status(path, stream=0)
        if output is not None and read is not None and is_fed_back(read, output):
            what = "the prompts" if path == rows else path
            raise FileExistsError(f"{results} holds {what}; the results need a file of their own")


def status(path: str, *, stream: int) -> os.stat_result | None:
    try:
        return os.fstat(stream) if path == STANDARD else os.stat(path)
    except (OSError, ValueError):
        return None


def is_fed_back(read: os.stat_result, written: os.stat_result) -> bool:
    """Whether what is written is read again. A terminal and a socket have two directions."""
    mode = read.st_mode
    return os.path.samestat(read, written) and not (stat.S_ISCHR(mode) or stat.S_ISSOCK(mode))


def open_results(path: str, *, overwrite: bool) -> ResultFile:
    """Opens a new file, one that may be overwritten, a pipe or a device.

    The old lines of a file to be overwritten stay until ResultFile.begin. Raises FileExistsError if the file exists and
    may not be overwritten, FileNotFoundError if its folder does not exist, OSError if it takes no bytes.
    """
    try:
        return standard_output(path) if is_standard_output(path) else open_file(path, overwrite=overwrite)
    except OSError as error:
        if error.errno is not None:
            error.filename = "standard output" if path == STANDARD else path
        raise


def standard_output(path: str) -> ResultFile:
    fd = os.dup(1)
    os.write(fd, b"")  # a stream that is closed, or a full device
    return ResultFile(path, fd)


def is_standard_output(path: str) -> bool:
    """Whether the path is "-" or another name of the file that standard output is open on (/dev/stdout). Such a file is
    not opened a second time, which would overwrite what it holds."""
    if path == STANDARD:
        return True
    try:
        return os.path.samestat(os.stat(path), os.fstat(1))
    except OSError:
        return False


def open_file(path: str, *, overwrite: bool) -> ResultFile:
    target = os.path.realpath(path) if os.path.islink(path) and not os.path.exists(path) else path
    folder = os.path.dirname(target) or "."
    if not os.path.isdir(folder):
        raise FileNotFoundError(f"{path}: there is no folder {folder}")
    flags = os.O_WRONLY | os.O_APPEND
    try:
        with signals_blocked():  # or one could come before the ResultFile knows what to remove
            fd = os.open(target, flags | os.O_CREAT | os.O_EXCL, 0o666)
            return ResultFile(path, fd, path=target, created=True)
    except FileExistsError:
        if os.path.isfile(target) and not overwrite:
            raise FileExistsError(f"{path} exists; --overwrite replaces it") from None
    fd = os.open(target, flags)
    os.write(fd, b"")  # a full device
    return ResultFile(path, fd, path=target)


@contextmanager
def signals_blocked() -> Iterator[None]:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM, signal.SIGHUP})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def standard_streams_reserved() -> Iterator[None]:
    """Keeps everything but the job away from standard input, which others find empty, and from standard output: what
    others print goes to standard error. A library's question would take a row as its answer, and its messages would
    stand among the results. To be entered once the job's files are open."""
    saved = os.dup(0), os.dup(1)
    sys.stdout.flush()
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.dup2(2, 1)
    os.close(nothing)
    try:
        yield
    finally:
        with suppress(OSError):
            sys.stdout.flush()
        for fd, own in enumerate(saved):
            os.dup2(own, fd)
            os.close(own)
