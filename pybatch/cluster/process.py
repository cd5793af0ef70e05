"""Processes of workers, known by the driver if they are on its machine."""

from __future__ import annotations

import os
import select
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Process:
    """pid: valid in one space of numbers, which is a machine's, or a container's."""

    space: str
    pid: int


def this_process() -> Process:
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return Process(f"{boot} {os.readlink('/proc/self/ns/pid')}", os.getpid())


def watch(process: Process) -> int | None:
    """A file descriptor that becomes readable when the process has ended, and all its memory is free. None if it has
    ended already, or is of another space."""
    if process.space != this_process().space:
        return None
    try:
        return os.pidfd_open(process.pid)
    except OSError:
        return None


def wait_for_ends(watched: Iterable[int], timeout: float) -> bool:
    """Waits, at most `timeout` seconds, and closes the descriptors. Returns whether all processes have ended."""
    left, deadline = set(watched), time.monotonic() + timeout
    poll = select.poll()
    for fd in left:
        poll.register(fd, select.POLLIN)
    all_ended = True
    while left and all_ended:
        ended = poll.poll(max(0.0, deadline - time.monotonic()) * 1000)
        for fd, _ in ended:
            poll.unregister(fd)
            left.discard(fd)
            os.close(fd)
        all_ended = bool(ended)
    for fd in left:
        os.close(fd)
    return all_ended
