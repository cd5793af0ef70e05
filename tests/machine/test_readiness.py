"""Waiting for files and sockets, whatever numbers they have."""

from __future__ import annotations

import fcntl
import resource
import socket
import time
from collections.abc import Iterator

import pytest

from pybatch.machine.readiness import wait_ready

HIGH = 1100  # select refuses those from 1,024


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Two ends of a connection, of which the first has a high number."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 2 * HIGH)), hard))
    ours, theirs = socket.socketpair()
    with ours, theirs, socket.socket(fileno=fcntl.fcntl(ours, fcntl.F_DUPFD_CLOEXEC, HIGH)) as high:
        ours.close()
        yield high, theirs
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_what_can_be_read_or_written_is_ready(pair: tuple[socket.socket, socket.socket]) -> None:
    high, theirs = pair
    assert high.fileno() >= HIGH
    begin = time.monotonic()
    assert not wait_ready([high], seconds=0.02)
    assert time.monotonic() - begin >= 0.02
    assert wait_ready(writing=[high.fileno()])
    assert wait_ready([high], [high], 60)  # though there is nothing to read
    theirs.send(b"x")
    assert wait_ready([high])


def test_the_other_end_has_gone(pair: tuple[socket.socket, socket.socket]) -> None:
    high, theirs = pair
    theirs.close()
    assert wait_ready([high], seconds=60)
    assert high.recv(1) == b""
