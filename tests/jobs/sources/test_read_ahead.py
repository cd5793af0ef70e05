from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from pybatch.jobs.rows import Row
from pybatch.jobs.sources.read_ahead import ReadAhead

LONG = 60.0  # seconds, for what comes at once


def row(index: int, size: int = 1) -> Row:
    return Row(index, index + 1, size, {})


def test_rows_come_as_they_are_produced() -> None:
    more = threading.Event()

    def rows() -> Iterator[Row]:
        yield row(0)
        more.wait()
        yield row(1)

    ahead = ReadAhead(rows(), "rows")
    assert ahead.take(LONG) == row(0)
    begin = time.monotonic()
    assert ahead.take(0) is None
    assert ahead.take(0.02) is None
    assert 0.02 <= time.monotonic() - begin < LONG
    assert not ahead.ended
    more.set()
    assert ahead.take(LONG) == row(1)
    assert ahead.take(LONG) is None
    assert ahead.ended


def test_it_reads_no_further_than_its_limit_in_bytes() -> None:
    drawn: list[int] = []

    def rows() -> Iterator[Row]:
        for index in range(20):
            drawn.append(index)
            yield row(index, 10)

    ahead = ReadAhead(rows(), "rows", limit=30)
    assert ahead.take(LONG) == row(0, 10)
    time.sleep(0.05)
    assert len(drawn) <= 5
    assert [ahead.take(LONG) for _ in range(19)] == [row(index, 10) for index in range(1, 20)]


def test_short_rows_count_with_what_they_take_in_memory() -> None:
    drawn: list[int] = []

    def rows() -> Iterator[Row]:
        for index in range(10_000):
            drawn.append(index)
            yield row(index)

    ahead = ReadAhead(rows(), "rows")
    assert ahead.take(LONG) == row(0)
    time.sleep(0.2)
    assert len(drawn) < 3000
    assert all(ahead.take(LONG) == row(index) for index in range(1, 10_000))


@pytest.mark.parametrize(("given", "named"), [(None, "folder"), ("folder/b.jsonl", "folder/b.jsonl")])
def test_an_error_comes_after_the_rows_before_it_and_names_the_input(given: str | None, named: str) -> None:
    def rows() -> Iterator[Row]:
        yield row(0)
        raise OSError(5, "Input/output error", given)

    ahead = ReadAhead(rows(), "folder")
    assert ahead.take(LONG) == row(0)
    with pytest.raises(OSError, match=f"Input/output error: '{named}'"):
        ahead.take(LONG)


def test_a_producer_that_ends_the_process_ends_the_job() -> None:
    def rows() -> Iterator[Row]:
        yield row(0)
        raise SystemExit("enough")

    ahead = ReadAhead(rows(), "rows")
    assert ahead.take(LONG) == row(0)
    with pytest.raises(SystemExit, match="enough"):
        ahead.take(1.0)


def test_its_thread_ends_when_it_is_closed() -> None:
    before = set(threading.enumerate())
    with ReadAhead((row(index, 100) for index in range(1000)), "rows", limit=1000) as ahead:
        assert ahead.take(LONG) == row(0, 100)
        (thread,) = set(threading.enumerate()) - before
    thread.join(LONG)
    assert not thread.is_alive()
