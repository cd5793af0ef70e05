from __future__ import annotations

from array import array
from types import SimpleNamespace

import pytest

from pybatch.engine.speculation.ngram import NgramProposer


def looked_up(tokens: list[int], count: int, shortest: int = 1, longest: int = 3) -> list[int]:
    sequence = SimpleNamespace(tokens=array("q", tokens))
    (drafts,) = NgramProposer(shortest, longest).propose([sequence], [count])  # type: ignore[list-item]
    sequence.tokens.append(1)  # no view of it is left, which would forbid that
    return list(drafts)


@pytest.mark.parametrize(
    ("tokens", "count", "drafts"),
    [
        ([1, 2, 3, 4, 9, 1, 2], 2, [3, 4]),
        ([1, 2, 3, 9, 5, 2, 8, 8, 1, 2], 1, [3]),  # two tokens agree there, one at the later place
        ([1, 2, 3, 7, 1, 2, 4, 7, 1, 2], 1, [4]),  # the last of two
        ([1, 2, 3, 7, 1, 2, 3, 5, 1, 2, 3], 2, [5, 1]),
        ([5, 6, 5, 6], 5, [5, 6, 5, 6, 5]),  # goes on as it was repeated
        ([3, 3], 4, [3, 3, 3, 3]),
        ([1, 2, 3, 4], 3, []),
        ([1], 3, []),
    ],
)
def test_it_copies_what_followed_the_latest_tokens(tokens: list[int], count: int, drafts: list[int]) -> None:
    assert looked_up(tokens, count) == drafts


def test_fewer_than_the_shortest_are_no_match() -> None:
    tokens = [1, 2, 3, 9, 8, 2, 3]
    assert looked_up(tokens, 2, shortest=2) == [9, 8]
    assert looked_up(tokens, 2, shortest=3) == []
    assert looked_up([1, 2, 1], 1, shortest=2) == []


def test_more_than_the_longest_are_not_looked_at() -> None:
    tokens = [1, 2, 3, 7, 5, 2, 3, 8, 1, 2, 3]
    assert looked_up(tokens, 1, longest=3) == [7]
    assert looked_up(tokens, 1, longest=2) == [8]
