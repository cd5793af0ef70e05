"""Threads for work that takes long, and that the process does not wait for at its end."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

T = TypeVar("T")

Piece = tuple[Future[Any], Callable[[], Any]] | None  # None ends a thread


class Workers:
    """Does one piece of work after another, on `count` threads, which are started when they are needed and end with
    this object. (An executor's threads would finish all that is queued before the process may end.)"""

    def __init__(self, count: int, name: str) -> None:
        self._count, self._name, self._started = count, name, 0
        self._queue: SimpleQueue[Piece] = SimpleQueue()
        weakref.finalize(self, end, self._queue, count)

    def submit(self, work: Callable[[], T]) -> Future[T]:
        """Of one thread at a time."""
        future: Future[T] = Future()
        self._queue.put((future, work))
        if self._started < self._count:
            self._started += 1
            threading.Thread(target=run, args=(self._queue,), name=self._name, daemon=True).start()
        return future


def run(queue: SimpleQueue[Piece]) -> None:
    while (piece := queue.get()) is not None:
        future, work = piece
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)
        del piece, future, work  # or the last piece's would be kept while the thread waits


def end(queue: SimpleQueue[Piece], count: int) -> None:
    with suppress(Empty):
        while True:
            queue.get_nowait()
    for _ in range(count):
        queue.put(None)
