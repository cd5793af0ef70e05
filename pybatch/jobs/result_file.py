"""Where a job's result rows go."""

from __future__ import annotations

import errno
import os
import select
import stat
from contextlib import suppress
from types import TracebackType
from typing import Self

_unused: set[ResultFile] = set()  # created for jobs that have not begun


class ResultFile:
    """An open output to which whole lines are appended. If a line does not fit, the part that was written is cut off.

    If the process is killed (SIGKILL) while a line of many megabytes is being written, a part of it may stay, as the
    last line and without a newline. A pipe or device keeps what it has received.

    name: for messages. path: of a file that this job opened; None for standard output. created: this job created the
    file, and it is removed again if the job never begins.
    """

    def __init__(self, name: str, fd: int, *, path: str | None = None, created: bool = False) -> None:
        self.name = name
        self._fd, self._path = fd, path
        status = os.fstat(fd)
        self._regular = stat.S_ISREG(status.st_mode)
        self._linked = status.st_nlink > 0
        if created:
            _unused.add(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.discard_unused()
        os.close(self._fd)

    def fileno(self) -> int:
        return self._fd

    def isatty(self) -> bool:
        return os.isatty(self._fd)

    def begin(self) -> None:
        """Truncates a file that is to be overwritten; its old lines stay until here. Raises OSError if another process
        has replaced the file since it was opened, or has written to one that this job created."""
        try:
            self._expect_linked()
            if self in _unused and os.fstat(self._fd).st_size:
                raise FileExistsError(errno.EEXIST, "another process has written to it")
            if self._regular and self._path is not None:
                os.ftruncate(self._fd, 0)
        except OSError as error:
            raise self._named(error) from None
        _unused.discard(self)

    def append(self, line: bytes) -> None:
        """Writes a line. Raises OSError, with the file's name, if it cannot be written as a whole."""
        left = memoryview(line)
        try:
            self._expect_linked()
            while left:
                try:
                    left = left[os.write(self._fd, left) :]
                except BlockingIOError:  # another process that has the pipe too has made it so
                    select.select([], [self._fd], [])
        except OSError as error:
            self._take_back(len(line) - len(left))
            raise self._named(error) from None

    def discard_unused(self) -> None:
        """Removes a file that was created for a job which has not begun, if it is still there and empty."""
        if self in _unused and self._path is not None:
            _unused.remove(self)
            with suppress(OSError):
                own = os.fstat(self._fd)
                if own.st_size == 0 and os.path.samestat(os.stat(self._path), own):
                    os.unlink(self._path)

    def _expect_linked(self) -> None:
        """Raises FileNotFoundError if the file has been deleted: rows written to it would be lost."""
        if self._linked and os.fstat(self._fd).st_nlink == 0:
            raise FileNotFoundError(errno.ENOENT, "deleted or replaced while the job was running")

    def _take_back(self, written: int) -> None:
        """Cuts off the bytes just written, unless another process has written behind them."""
        if written and self._regular:
            end = os.lseek(self._fd, 0, os.SEEK_CUR)
            if os.fstat(self._fd).st_size == end:
                os.ftruncate(self._fd, end - written)
                os.lseek(self._fd, end - written, os.SEEK_SET)

    def _named(self, error: OSError) -> OSError:
        error.filename = self.name
        return error


def discard_unused_files() -> None:
    """Called before the process ends at once."""
    for file in list(_unused):
        file.discard_unused()
