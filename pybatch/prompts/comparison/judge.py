"""A model as the judge of answers: two at a time, each time in both orders, since models favour a place."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from pybatch.prompts.comparison.score import Mark

CRITERION = "Which answer does the task better?"
FIRST, SECOND, TIE = LETTERS = ("A", "B", "C")
PROMPT = """Compare two answers to the same task. {criterion}

The task's data:
{data}

Answer A:
{first}

Answer B:
{second}

{criterion} Reply with one letter: A if answer A is better, B if answer B is better, C if neither is."""


@dataclass(frozen=True, slots=True)
class Judge:
    """criterion: a question or an instruction; empty: CRITERION. Its score of an answer is the share of the duels with
    the row's other answers that it wins: 1 by both orders' verdicts, 0.5 by contradictory ones or ties."""

    name: str
    criterion: str = ""

    def question(self, row: Mapping[str, Any], first: str, second: str) -> str:
        return PROMPT.format(criterion=self.criterion or CRITERION, data=shown(row), first=first, second=second)


@dataclass(frozen=True, slots=True)
class Duel:
    """Two variants' answers to a row, the first of which is shown as A."""

    row: int
    repeat: int
    first: str
    second: str


def duels(row: int, repeat: int, answers: Mapping[str, str]) -> Iterator[Duel]:
    """answers: of the variants that have one, by name. Equal ones need no judge."""
    for one, other in combinations(answers, 2):
        if answers[one] != answers[other]:
            yield Duel(row, repeat, one, other)
            yield Duel(row, repeat, other, one)


def marks(answers: Mapping[str, str], verdicts: Mapping[tuple[str, str], str | None]) -> dict[str, Mark]:
    """Of a row's answers. verdicts: letters, by the duel's first and second variant; None: the duel failed."""
    shares: dict[str, list[float]] = {name: [] for name in answers}
    for one, other in combinations(answers, 2):
        if answers[one] == answers[other]:
            shares[one].append(0.5)
            shares[other].append(0.5)
            continue
        letters = verdicts.get((one, other)), verdicts.get((other, one))
        if None not in letters:
            won = (worth(letters[0], FIRST) + worth(letters[1], SECOND)) / 2
            shares[one].append(won)
            shares[other].append(1 - won)
    return {
        name: Mark(sum(won) / len(won), f"won {sum(won):g} of {len(won)}") if won else Mark(None, "no verdict")
        for name, won in shares.items()
    }


def worth(letter: str | None, own: str) -> float:
    """Of a verdict, for the answer that was shown as `own`."""
    return 1.0 if letter == own else 0.5 if letter == TIE else 0.0


def by_place(verdicts: Mapping[tuple[str, str], str | None]) -> tuple[int, int]:
    """How many duels were decided for the same place in both orders, and how many there were: a judge for whom these
    are nearly the same sees places, not answers."""
    pairs = [(one, other) for one, other in verdicts if (other, one) in verdicts and one < other]
    same = sum(verdicts[pair] == verdicts[pair[::-1]] in (FIRST, SECOND) for pair in pairs)
    return same, len(pairs)


def shown(row: Mapping[str, Any]) -> str:
    """A row's fields, for the judge: text as it is, everything else as JSON."""
    texts = {
        name: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False) for name, value in row.items()
    }
    return "\n".join(f"{name}: {text}" for name, text in texts.items())


def letter_tokens(encode: Any, letters: Sequence[str] = LETTERS) -> list[int]:
    """The token of each letter, with and without a blank in front. encode: a tokenizer's."""
    ids = {encode(f"{blank}{letter}", add_special_tokens=False)[-1] for blank in ("", " ") for letter in letters}
    return sorted(ids)
