from __future__ import annotations

import random
import tracemalloc

from hypothesis import given, settings
from hypothesis import strategies as st

from pybatch.jobs.answers.duplicates import InFlight, KeySet


def test_equal_requests_follow_the_first_and_get_its_answer() -> None:
    requests: InFlight[int] = InFlight()
    assert [requests.join(key, i) for i, key in enumerate([b"a", b"b", b"a", b"a"])] == [True, True, False, False]
    assert requests.answered(b"a") == [2, 3]
    assert requests.answered(b"b") == []
    assert requests.join(b"a", 4), "the answer has been given: the next one leads"


def test_a_failure_is_the_leaders_alone() -> None:
    requests: InFlight[int] = InFlight()
    assert [requests.join(b"a", i) for i in range(3)] == [True, False, False]
    assert requests.failed(b"a") == 1
    assert not requests.join(b"a", 3)
    assert requests.answered(b"a") == [2, 3]
    assert requests.join(b"a", 4)
    assert requests.failed(b"a") is None
    assert requests.join(b"a", 5)


def test_followers_are_bounded_in_number_and_bytes() -> None:
    requests: InFlight[int] = InFlight(max_followers=3, max_bytes=100)
    for i, (size, room) in enumerate([(1000, True), (60, True), (50, False)]):
        requests.join(b"a", i, size)
        assert requests.has_room == room
    assert requests.failed(b"a") == 1
    for i, room in ((3, True), (4, False)):
        assert requests.has_room
        assert not requests.join(b"a", i)
        assert requests.has_room == room
    assert requests.answered(b"a") == [2, 3, 4]
    assert requests.has_room


@settings(deadline=None)
@given(st.lists(st.integers(1, 40) | st.integers(1, 2**64 - 1)), st.integers(0, 20))
def test_a_set_of_keys_is_a_set(keys: list[int], expected: int) -> None:
    seen: set[int] = set()
    of_keys = KeySet(expected)
    for key in keys:
        assert of_keys.add(key) == (key not in seen)
        seen.add(key)


def test_a_set_of_keys_is_small() -> None:
    rng = random.Random(0)
    tracemalloc.start()
    try:
        keys = KeySet(100_000)
        assert all(keys.add(1 + rng.randrange(2**64 - 1)) for _ in range(100_000))
        assert tracemalloc.get_traced_memory()[1] < 2.2e6
    finally:
        tracemalloc.stop()
