"""What a scorer says of one answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

PASSED = 0.5  # the score from which an answer has passed


@dataclass(frozen=True, slots=True)
class Mark:
    """score: the greater the better; of the scorers here 0 to 1. None: there is none, and feedback says why. feedback:
    for people, in a few words."""

    score: float | None
    feedback: str = ""


@dataclass(frozen=True, slots=True)
class Score:
    """Of one answer by one scorer. row, repeat: numbers from 0; a row is answered once for each repeat. score,
    feedback: as Mark's. passed: None without a score."""

    variant: str
    row: int
    repeat: int
    scorer: str
    score: float | None
    passed: bool | None
    feedback: str

    @classmethod
    def of(cls, mark: Mark, variant: str, row: int, repeat: int, scorer: str) -> Score:
        passed = None if mark.score is None else mark.score >= PASSED
        return cls(variant, row, repeat, scorer, mark.score, passed, mark.feedback)


class Scorer(Protocol):
    """name: as the user wrote it. fields: of a row, that it reads; a row without one has no score."""

    @property
    def name(self) -> str: ...

    @property
    def fields(self) -> Sequence[str]: ...

    def mark(self, row: Mapping[str, Any], answer: str) -> Mark:
        """row: the data's own fields. Raises nothing of its own: what cannot be scored is a mark without a score."""
