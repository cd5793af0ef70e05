"""A lock that threads get in the order in which they asked for it."""

from __future__ import annotations

import threading
from collections import deque


class FairLock:
    """threading.Lock lets a thread that releases it take it again at once, so that others may wait for ever."""

    def __init__(self) -> None:
        self._guard = threading.RLock()  # over the two below; a finalizer may come in on the thread that holds it
        self._held = False
        self._waiting: deque[threading.Lock] = deque()

    def acquire(self, *, blocking: bool = True) -> bool:
        """Returns whether this thread has the lock now."""
        with self._guard:
            if not self._held:
                self._held = True
                return True
            if not blocking:
                return False
            turn = threading.Lock()
            turn.acquire()
            self._waiting.append(turn)
        try:
            turn.acquire()
        except BaseException:  # an interrupt
            with self._guard:
                if turn in self._waiting:
                    self._waiting.remove(turn)
                else:  # it came when the lock had just been handed over
                    self.release()
            raise
        return True

    def release(self) -> None:
        with self._guard:
            if self._waiting:
                self._waiting.popleft().release()  # the next one holds it now
            else:
                self._held = False

    def __enter__(self) -> None:
        self.acquire()

    def __exit__(self, *error: object) -> None:
        self.release()
