"""A file or stream that rows are read from."""

from __future__ import annotations

import io
import os
import stat
import weakref
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

STANDARD_INPUT = "-"


class ByteFile:
    """The bytes of a file or of a stream, which is opened at once: what is read later is the same file, whatever
    becomes of its path.

    rereadable: it can be read again from its start; standard input that is a file starts where it stands. Raises
    OSError, with the path, if it cannot be read.
    """

    def __init__(self, path: str) -> None:
        self.name = "standard input" if path == STANDARD_INPUT else path
        try:
            self._fd = os.dup(0) if path == STANDARD_INPUT else os.open(path, os.O_RDONLY)
            weakref.finalize(self, os.close, self._fd)
            os.set_blocking(self._fd, True)  # a pipe may have been left non-blocking, and would seem to end
            os.read(self._fd, 0)  # a folder, or a stream that is closed
            self.rereadable = stat.S_ISREG(os.fstat(self._fd).st_mode)
            self._start = os.lseek(self._fd, 0, os.SEEK_CUR) if self.rereadable else 0
        except OSError as error:
            error.filename = self.name
            raise

    def open(self) -> io.BufferedReader:
        """The bytes from the start; of a stream, those that have not been read."""
        if self.rereadable:
            return io.BufferedReader(_PositionedReader(self, self._fd, self._start), 1 << 16)
        return open(os.dup(self._fd), "rb")


class _PositionedReader(io.RawIOBase):
    """Reads an open file at a position of its own. owner: keeps the file open."""

    def __init__(self, owner: object, fd: int, start: int) -> None:
        self._owner, self._fd, self._start = owner, fd, start
        self._position = start

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        count = os.preadv(self._fd, [buffer], self._position)
        self._position += count
        return count

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        origin = {os.SEEK_SET: self._start, os.SEEK_CUR: self._position}.get(whence)
        self._position = (os.fstat(self._fd).st_size if origin is None else origin) + offset
        return self._position - self._start
