"""Opens what a job reads and writes; "-" is standard input or output. Nothing that exists is changed here."""

from __future__ import annotations

import os
import stat
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress

from pybatch.jobs.disk.line_file import LineFile
from pybatch.jobs.sources import would_read
from pybatch.jobs.sources.paths import files_of
from pybatch.latitude.addresses import is_dataset

STANDARD = "-"


def expect_all_apart(written: Iterable[str], *, rows: str, others: Sequence[str | None] = ()) -> None:
    """As expect_apart, for each of several files that a job writes."""
    for path in written:
        expect_apart(path, rows=rows, others=others)


def expect_apart(results: str, *, rows: str, others: Iterable[str | None] = ()) -> None:
    """Raises FileExistsError if the results would go into the file or folder that the rows, or others, are read from,
    by whatever name or stream it is reached."""
    if is_dataset(results):
        if results == rows:
            raise FileExistsError(f"{results} holds the prompts; the results need a data set of their own")
        return
    output = status(results, stream=1)
    for path in (rows, *others):
        read = None if path is None else status(path, stream=0)
        if output is not None and read is not None and is_fed_back(read, output):
            what = "the prompts" if path == rows else path
            raise FileExistsError(f"{results} holds {what}; the results need a file of their own")
    if results != STANDARD and would_read(rows, results):
        where = "in the folder of the prompts" if os.path.isdir(rows) else f"one of {rows}, the prompts"
        raise FileExistsError(f"{results} is {where}; the results need a place of their own")


def created(path: str) -> int:
    """When the newest file of a path, a folder or a glob was last changed, in seconds since 1970; now for a stream.
    Results that bear a date have this one, so that the same job always gives the same bytes."""
    found = [status(file, stream=0) for file in files_of(path)]
    changed = [each.st_mtime for each in found if each is not None and stat.S_ISREG(each.st_mode)]
    return int(max(changed, default=time.time()))


def status(path: str, *, stream: int) -> os.stat_result | None:
    try:
        return os.fstat(stream) if path == STANDARD else os.stat(path)
    except (OSError, ValueError):
        return None


def is_fed_back(read: os.stat_result, written: os.stat_result) -> bool:
    """Whether what is written is read again. A terminal and a socket have two directions."""
    mode = read.st_mode
    return os.path.samestat(read, written) and not (stat.S_ISCHR(mode) or stat.S_ISSOCK(mode))


def is_stream(path: str) -> bool:
    """Whether open_stream opens one."""
    return is_standard_output(path) or (os.path.exists(path) and not os.path.isfile(path))


def open_stream(path: str) -> LineFile | None:
    """Standard output, a pipe or a device to which results are written as they come; None if the path is, or is to be,
    a file or a data set.

    Raises FileNotFoundError if there is no such folder, OSError if the stream takes no bytes.
    """
    if is_dataset(path):
        return None
    name = "standard output" if path == STANDARD else path
    try:
        if is_standard_output(path):
            fd = os.dup(1)
        elif not os.path.exists(path):
            folder = os.path.dirname(os.path.realpath(path))
            if not os.path.isdir(folder):
                raise FileNotFoundError(f"{path}: there is no folder {os.path.dirname(path) or folder}")
            return None
        elif os.path.isfile(path):
            return None
        else:
            fd = os.open(path, os.O_WRONLY | os.O_APPEND)
        os.write(fd, b"")  # a stream that is closed, or a full device
    except OSError as error:
        if error.errno is not None:
            error.filename = name
        raise
    return LineFile(name, fd)


def is_standard_output(path: str) -> bool:
    """Whether the path is "-" or another name of the file that standard output is open on (/dev/stdout). Such a file is
    not opened a second time, which would overwrite what it holds."""
    if path == STANDARD:
        return True
    try:
        return os.path.samestat(os.stat(path), os.fstat(1))
    except OSError:
        return False


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
