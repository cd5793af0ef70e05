from __future__ import annotations

import time

from hypothesis import given
from hypothesis import strategies as st

from pybatch.engine.scheduling.length_prediction import LengthPredictor


def test_an_output_comes_to_what_most_of_those_that_are_longer_have_come_to() -> None:
    lengths = LengthPredictor()
    for length in range(1, 101):
        lengths.ended(None, length)
    assert lengths.predict(None, 0, 1000) == 71
    assert lengths.predict(None, 50, 1000) == 86
    assert lengths.predict(None, 50, 60) == 60  # its own max_tokens
    assert lengths.predict(None, 98, 1000) == 196  # of two longer ones nothing is told
    assert lengths.predict(None, 300, 1000) == 600
    for _ in range(10):
        lengths.ended(None, 10_000)
    assert lengths.predict(None, 0, 10**6) < 100  # a few that never stop change little
    assert lengths.predict(7, 0, 1000) == 512  # another class
    assert lengths.predict(7, 0, 7) == 7


def test_the_newest_lengths_count() -> None:
    lengths = LengthPredictor()
    for i in range(100_000):
        lengths.ended(None, 50 + i % 10)
    begin = time.thread_time()
    for i in range(1000):
        lengths.ended(None, 500 + i % 10)
    assert time.thread_time() - begin < 0.1
    assert 500 <= lengths.predict(None, 0, 1000) < 510


@given(st.lists(st.integers(1, 50), max_size=300), st.integers(0, 60), st.integers(1, 60))
def test_one_that_goes_on_comes_to_more(ended: list[int], so_far: int, more: int) -> None:
    lengths = LengthPredictor()
    for length in ended:
        lengths.ended(9, length)
    assert so_far < lengths.predict(9, so_far, so_far + more) <= so_far + more
