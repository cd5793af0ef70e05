from __future__ import annotations

import pytest

from pybatch.prompts.comparison.judge import Duel, Judge, by_place, duels, letter_tokens, marks


def test_both_orders_of_each_pair_of_unlike_answers() -> None:
    answers = {"a": "yes", "b": "no", "c": "yes"}
    assert list(duels(7, 1, answers)) == [
        Duel(7, 1, "a", "b"), Duel(7, 1, "b", "a"), Duel(7, 1, "b", "c"), Duel(7, 1, "c", "b"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("verdicts", "score"),
    [(("A", "B"), 1), (("B", "A"), 0), (("A", "A"), 0.5), (("B", "B"), 0.5), (("C", "C"), 0.5), (("A", "C"), 0.75)],
)
def test_a_duel_is_won_in_both_orders(verdicts: tuple[str, str], score: float) -> None:
    found = marks({"a": "yes", "b": "no"}, {("a", "b"): verdicts[0], ("b", "a"): verdicts[1]})
    assert found["a"].score == score
    assert found["b"].score == 1 - score


def test_three_answers_share_their_duels() -> None:
    verdicts = {("a", "b"): "A", ("b", "a"): "B", ("b", "c"): "A", ("c", "b"): None}
    found = marks({"a": "yes", "b": "no", "c": "yes"}, verdicts)
    assert {name: each.score for name, each in found.items()} == {"a": 0.75, "b": 0.0, "c": 0.5}
    assert marks({"a": "yes"}, {})["a"].score is None


def test_a_judge_that_sees_places_is_found_out() -> None:
    verdicts = {("a", "b"): "A", ("b", "a"): "A", ("a", "c"): "A", ("c", "a"): "B", ("b", "c"): "C", ("c", "b"): "C"}
    assert by_place(verdicts) == (1, 3)


def test_what_the_judge_is_shown() -> None:
    question = Judge("judge", "Which is more polite?").question({"text": "{a}", "n": 3}, "first {b}", "second")
    for part in ("text: {a}\nn: 3\n", "Answer A:\nfirst {b}\n", "Answer B:\nsecond\n"):
        assert part in question
    assert question.count("Which is more polite?") == 2


def test_letters_are_tokens_with_and_without_a_blank() -> None:
    vocabulary = {"A": [1], "B": [2], "C": [3], " A": [4], " B": [9, 2], " C": [3]}
    assert letter_tokens(lambda text, add_special_tokens: vocabulary[text]) == [1, 2, 3, 4]
