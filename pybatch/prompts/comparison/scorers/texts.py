"""Answers compared with a text: equal to it, holding it, made of the same words, matching a pattern."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

from pybatch.jobs.dialects.template import Template
from pybatch.prompts.comparison.score import Mark

WORD = re.compile(r"\w+")
SHOWN = 80  # characters of a text in a feedback


class TextScorer(ABC):
    """expected: text with {field} where a row's field goes, as in prompt templates."""

    form: ClassVar[str]

    def __init__(self, name: str, expected: str) -> None:
        self.name, self._expected = name, Template(expected)
        self.fields = self._expected.fields

    def mark(self, row: Mapping[str, Any], answer: str) -> Mark:
        expected = self._expected.fill(row).strip()
        score = self.score(answer.strip(), expected)
        return Mark(score, "" if score == 1 else f"expected {self.form} {shown(expected)}")

    @abstractmethod
    def score(self, answer: str, expected: str) -> float:
        """Of an answer and a text without blanks around them."""


class Exact(TextScorer):
    """The whole answer is the text, but for blanks around it."""

    form = "exactly"

    def score(self, answer: str, expected: str) -> float:
        return float(answer == expected)


class ExactInAnyCase(TextScorer):
    """As Exact, in capital or small letters."""

    form = "in any case"

    def score(self, answer: str, expected: str) -> float:
        return float(answer.casefold() == expected.casefold())


class Contains(TextScorer):
    """The text is somewhere in the answer."""

    form = "somewhere"

    def score(self, answer: str, expected: str) -> float:
        return float(expected in answer)


class ContainsInAnyCase(TextScorer):
    """As Contains, in capital or small letters."""

    form = "somewhere, in any case,"

    def score(self, answer: str, expected: str) -> float:
        return float(expected.casefold() in answer.casefold())


class Tokens(TextScorer):
    """How alike the sets of words are: the share of all words of both texts that both have (Jaccard 1901). Case,
    order, number and punctuation do not matter."""

    form = "the words of"

    def score(self, answer: str, expected: str) -> float:
        own, others = words(answer), words(expected)
        return len(own & others) / len(own | others) if own | others else 1.0


class Matches:
    """The answer has a match of a regular expression, of Python's kind; ^ and $ make it the whole answer."""

    fields: tuple[str, ...] = ()

    def __init__(self, name: str, pattern: str) -> None:
        """Raises ValueError for what is no pattern."""
        self.name = name
        try:
            self._pattern = re.compile(pattern)
        except re.error as error:
            raise ValueError(f"expected a regular expression, got {pattern!r}: {error}") from None

    def mark(self, row: Mapping[str, Any], answer: str) -> Mark:
        found = self._pattern.search(answer.strip()) is not None
        return Mark(float(found), "" if found else f"no match of {shown(self._pattern.pattern)}")


def words(text: str) -> set[str]:
    return set(WORD.findall(text.casefold()))


def shown(text: str) -> str:
    return repr(text if len(text) <= SHOWN else f"{text[:SHOWN]}…")
