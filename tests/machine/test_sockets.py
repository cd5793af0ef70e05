"""Processes of a machine, whose places threads take here, exchange bytes of any sizes."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Event
from typing import TypeVar

import pytest
from torch._C._distributed_c10d import HashStore

from pybatch.machine import sockets
from pybatch.machine.sockets import SPIN, Sockets

T = TypeVar("T")


def of_all(size: int, call: Callable[[Sockets, int], T]) -> list[T]:
    store = HashStore()

    def run(number: int) -> T:
        return call(Sockets(store, number, size), number)

    with ThreadPoolExecutor(size) as threads:
        return list(threads.map(run, range(size)))


@pytest.mark.parametrize("size", [2, 3, 4])
def test_all_have_the_parts_of_all(size: int) -> None:
    """Some are larger than what a socket holds, and some processes come late."""
    widths = [1, 7, 3_000_000, 64, 700_000, 5]
    sent = [[random.Random(f"{step} {number}").randbytes(width) for number in range(size)]
            for step, width in enumerate(widths)]  # fmt: skip

    def exchange(own: Sockets, number: int) -> list[list[bytes]]:
        found = []
        for step, parts in enumerate(sent):
            if step == number:
                time.sleep(10 * SPIN)
            memory = [bytearray(part if other == number else len(part)) for other, part in enumerate(parts)]
            own.gather(list(map(memoryview, memory)))
            found.append(list(map(bytes, memory)))
        return found

    assert of_all(size, exchange) == [sent] * size


def test_one_that_ends_or_does_not_come_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    has_waited = Event()

    def exchange(own: Sockets, number: int) -> str:
        if number:
            has_waited.wait(60)
            return ""  # which closes its sockets
        with monkeypatch.context() as patch:
            patch.setattr(sockets, "PATIENCE", 0.05)
            with pytest.raises(TimeoutError, match=r"processes \[1\] do not answer"):
                own.gather([memoryview(bytearray(9)), memoryview(bytearray(9))])
        has_waited.set()
        with pytest.raises(OSError, match="process 1 has ended"):
            own.gather([memoryview(bytearray(9)), memoryview(bytearray(9))])
        return "ended"

    assert of_all(2, exchange) == ["ended", ""]
