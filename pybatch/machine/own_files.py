"""Files that one user's processes write and read: as a whole or not at all, and nobody else's."""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

TEMPORARY = ".tmp"  # what ends the name of a file that is being written
_ABANDONED = 3600.0  # seconds after which a file that was being written is one of a process that was killed


class BadFileError(Exception):
    """A file does not hold what its name says."""


def open_own(path: Path) -> int:
    """A descriptor to read from, to be closed. Raises BadFileError if it is no file of this user, and OSError."""
    file = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    found = os.fstat(file)
    if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid():
        os.close(file)
        raise BadFileError("it is not a file of this user")
    return file


def write_own(path: Path, pieces: Iterable[Any], *, used: int | None = None) -> None:
    """Writes a file that its owner alone may read. It is there as a whole or not at all, and one that is there already
    is replaced, not overwritten: who has it open or mapped keeps the old one. Nobody waits until the disk has it.

    pieces: buffers of bytes. used: the time of modification, in nanoseconds since 1970; None: now. Raises OSError.
    """
    file, name = tempfile.mkstemp(suffix=TEMPORARY, dir=path.parent)
    try:
        with open(file, "wb", buffering=0) as stream:
            for piece in pieces:
                left = memoryview(piece)
                while left:
                    left = left[stream.write(left) :]
        if used is not None:
            os.utime(name, ns=(used, used))
        os.replace(name, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(name)
        raise


def is_abandoned(name: str, modified: float, now: float) -> bool:
    """Whether a file is one that a process was writing when it was killed. Times in seconds since 1970."""
    return name.endswith(TEMPORARY) and now - modified > _ABANDONED
