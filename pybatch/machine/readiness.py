"""Waits for files and sockets.

By poll: select refuses descriptors above 1,023, and a server has one for each of its connections.
"""

from __future__ import annotations

import math
import select
from collections import Counter
from collections.abc import Iterable
from typing import Protocol


class File(Protocol):
    def fileno(self) -> int: ...


def wait_ready(
    reading: Iterable[int | File] = (), writing: Iterable[int | File] = (), seconds: float | None = None
) -> bool:
    """Whether one can be read or written before the time is over, or has failed; None: however long that takes."""
    poll = select.poll()
    events = Counter[int]()
    for files, event in ((reading, select.POLLIN), (writing, select.POLLOUT)):
        for file in files:
            events[file if isinstance(file, int) else file.fileno()] |= event
    for descriptor, wanted in events.items():
        poll.register(descriptor, wanted)
    return bool(poll.poll(None if seconds is None else math.ceil(seconds * 1000)))
