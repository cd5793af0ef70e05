"""Reads rows on a thread beside the engine, so that a slow producer does not hold up the rows that are running."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable
from types import TracebackType
from typing import Self

from pybatch.jobs.rows import Row

ROW_BYTES = 500  # that a short row takes in memory besides its text


class ReadAhead:
    """Reads rows on a thread of its own and keeps some of them ready.

    name: of the input, for error messages. limit: of the bytes that the rows kept take; the thread pauses when it is
    reached. As a context manager it ends the thread, whether or not all rows have been taken.
    """

    def __init__(self, rows: Iterable[Row], name: str, limit: int = 1 << 20) -> None:
        self._name, self._limit = name, limit
        self._ready: deque[Row] = deque()
        self._size = 0
        self._done = self._closed = False
        self._error: BaseException | None = None
        self._changed = threading.Condition()
        # A daemon thread, since it cannot be interrupted while it waits for an input that stays open.
        threading.Thread(target=self._read, args=(rows,), daemon=True).start()

    def take(self, timeout: float) -> Row | None:
        """The next row; None if none comes within `timeout` seconds. Raises the error that ended the reading."""
        with self._changed:
            self._changed.wait_for(lambda: self._ready or self._done, timeout)
            if self._ready:
                row = self._ready.popleft()
                self._size -= ROW_BYTES + row.size
                self._changed.notify_all()
                return row
            if self._error is not None:
                raise self._error
            return None

    @property
    def ended(self) -> bool:
        """Whether every row has been taken."""
        with self._changed:
            return self._done and not self._ready and self._error is None

    def close(self) -> None:
        """The thread ends after the row that it is reading."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _read(self, rows: Iterable[Row]) -> None:
        error: BaseException | None = None
        try:
            for row in rows:
                with self._changed:
                    self._ready.append(row)
                    self._size += ROW_BYTES + row.size
                    self._changed.notify_all()
                    self._changed.wait_for(lambda: self._size < self._limit or self._closed)
                    if self._closed:
                        break
        except BaseException as caught:  # SystemExit too, for which the job would otherwise wait for ever
            error = caught
            if isinstance(error, OSError):
                error.filename = error.filename or self._name  # of several files it is one
        with self._changed:
            self._done, self._error = True, error
            self._changed.notify_all()
