"""From any thread to one asyncio task."""

from __future__ import annotations

import asyncio
from collections import deque

from pybatch.engine import RequestOutput


class Mailbox:
    """Holds a request's newest output for one task to get: a slow reader skips to it.

    deltas: what has not been taken yet is not replaced by a newer output but goes on with it.
    """

    __slots__ = ("_deltas", "_items", "_loop", "_notified", "_waiter")

    def __init__(self, loop: asyncio.AbstractEventLoop, *, deltas: bool = False) -> None:
        self._loop, self._deltas = loop, deltas
        self._items: deque[RequestOutput | Exception] = deque(maxlen=None if deltas else 1)
        self._notified = False  # a call to _wake is on its way, or the reader has not looked since
        self._waiter: asyncio.Future[None] | None = None

    def put(self, item: RequestOutput | Exception) -> bool:
        """Returns False if the event loop is closed, so that no task can get it."""
        self._items.append(item)
        if not self._notified:
            self._notified = True
            try:
                self._loop.call_soon_threadsafe(self._wake)
            except RuntimeError:
                return False
        return True

    async def get(self) -> RequestOutput:
        """Raises the item if it is an exception."""
        while True:
            self._notified = False  # before looking: what comes from here on wakes the reader again
            if self._items:
                return self._take()
            self._waiter = self._loop.create_future()
            await self._waiter

    def _take(self) -> RequestOutput:
        item = self._items.popleft()
        if isinstance(item, Exception):
            raise item
        while self._deltas and self._items and isinstance(following := self._items[0], RequestOutput):
            self._items.popleft()
            item.add(following)
        return item

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
