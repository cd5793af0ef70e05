"""A file, pipe or device to which whole lines are appended."""

from __future__ import annotations

import errno
import os
import stat

from pybatch.machine.readiness import wait_ready


class LineFile:
    """Appends whole lines to an open file descriptor, which it owns. If a line does not fit, the part that was written
    is cut off; a pipe or device keeps what it has received.

    name: for messages.
    """

    def __init__(self, name: str, fd: int) -> None:
        self.name = name
        self._fd = fd
        status = os.fstat(fd)
        self._regular = stat.S_ISREG(status.st_mode)
        self._linked = status.st_nlink > 0

    def fileno(self) -> int:
        return self._fd

    def append(self, line: bytes) -> None:
        """Raises OSError, with the file's name, if the line cannot be written as a whole, FileNotFoundError if the file
        has been deleted: what is written to it would be lost."""
        left = memoryview(line)
        try:
            if self._linked and os.fstat(self._fd).st_nlink == 0:
                raise FileNotFoundError(errno.ENOENT, "deleted or replaced while the job was running")
            while left:
                try:
                    left = left[os.write(self._fd, left) :]
                except BlockingIOError:  # another process that has the pipe too has made it so
                    wait_ready(writing=[self._fd])
        except OSError as error:
            self._take_back(len(line) - len(left))
            error.filename = self.name
            raise

    def close(self) -> None:
        os.close(self._fd)

    def _take_back(self, written: int) -> None:
        """Cuts off the bytes just written, unless another process has written behind them."""
        if written and self._regular:
            end = os.lseek(self._fd, 0, os.SEEK_CUR)
            if os.fstat(self._fd).st_size == end:
                os.ftruncate(self._fd, end - written)
                os.lseek(self._fd, end - written, os.SEEK_SET)
