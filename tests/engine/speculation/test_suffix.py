from __future__ import annotations

import random
from array import array
from collections import Counter

import pytest

from pybatch.engine.speculation.suffix import SuffixAutomaton


def following(tokens: list[int], most: int = 8) -> list[int]:
    automaton = SuffixAutomaton()
    automaton.extend(tokens)
    return automaton.following(most)


@pytest.mark.parametrize(
    ("tokens", "drafts"),
    [
        ([1, 2, 3, 4, 5, 9, 1, 2, 3], [4, 5, 9, 1]),  # at most one more than the tokens that agree
        ([1, 2, 7, 5, 1, 2, 8, 4, 1, 2, 7, 6, 1, 2], [7, 5, 1]),  # 7 twice, 8 once
        ([5, 1, 2, 3, 6, 2, 4, 2, 4, 5, 1, 2], [3, 6, 2, 4]),  # after 5 1 2, though after 2 alone mostly 4
        ([3, 3, 3, 3], [3, 3, 3, 3]),
        ([1, 2, 3, 4], []),
        ([1], []),
        ([], []),
    ],
)
def test_what_most_often_followed_the_longest_known_end(tokens: list[int], drafts: list[int]) -> None:
    assert following(tokens) == drafts


def test_no_more_than_are_asked_for() -> None:
    assert following([1, 2, 3, 4, 5, 9, 1, 2, 3], 2) == [4, 5]


@pytest.mark.parametrize("seed", range(8))
def test_the_next_token_is_that_of_a_search_through_the_text(seed: int) -> None:
    draw = random.Random(seed)
    tokens = [draw.randrange(3 + seed % 3) for _ in range(300)]
    automaton = SuffixAutomaton()
    for end in range(1, len(tokens)):
        automaton.extend(tokens[end - 1 : end])
        text = tokens[:end]
        length, followed = 0, Counter[int]()
        while True:
            after = Counter(
                text[i + length + 1]
                for i in range(end - length - 1)
                if text[i : i + length + 1] == text[end - length - 1 :]
            )
            if not after:
                break
            length, followed = length + 1, after
        found = automaton.following(1)
        assert bool(found) == bool(followed)
        if found:
            assert followed[found[0]] == max(followed.values())


def test_a_long_repetition_takes_no_longer_for_each_token() -> None:
    automaton = SuffixAutomaton()
    automaton.extend(array("q", [7]) * 20_000)
    assert automaton.following(3) == [7, 7, 7]
