"""Ctrl-C takes effect between two steps of the engine, not inside one."""

from __future__ import annotations

import signal
import threading
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def deferred_interrupts() -> Iterator[Collection[int]]:
    """Delays a Ctrl-C until the end of the block, so that it leaves no half-changed state behind. Within the block, the
    collection says whether one has come.

    A second Ctrl-C is not delayed. Does nothing off the main thread, where Python delivers no signals.
    """
    handler = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(handler):
        yield ()
        return
    held: list[int] = []  # without the frame, which would keep its variables alive: views of arrays that are to grow

    def hold(signum: int, frame: FrameType | None) -> None:
        if held:
            handler(signum, frame)
        held.append(signum)

    signal.signal(signal.SIGINT, hold)
    try:
        yield held
    finally:
        signal.signal(signal.SIGINT, handler)
        if len(held) == 1:
            handler(held[0], None)
