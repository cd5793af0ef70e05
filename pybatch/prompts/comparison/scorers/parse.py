"""From what the user writes to a scorer."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from difflib import get_close_matches
from typing import Any

from pybatch.prompts.comparison.judge import Judge
from pybatch.prompts.comparison.score import Scorer
from pybatch.prompts.comparison.scorers.functions import Function, function_of
from pybatch.prompts.comparison.scorers.numbers import Near
from pybatch.prompts.comparison.scorers.schemas import FollowsSchema
from pybatch.prompts.comparison.scorers.texts import (
    Contains,
    ContainsInAnyCase,
    Exact,
    ExactInAnyCase,
    Matches,
    Tokens,
)

KINDS: dict[str, Callable[[str, str], Scorer]] = {
    "exact": Exact,
    "iexact": ExactInAnyCase,
    "contains": Contains,
    "icontains": ContainsInAnyCase,
    "tokens": Tokens,
    "regex": Matches,
    "numeric": Near,
    "schema": FollowsSchema,
}
EXPECTED = (
    f"expected judge, judge:CRITERION, MODULE:FUNCTION, or one of {', '.join(KINDS)} with a colon and what it "
    "compares with"
)

Given = str | Callable[[dict[str, Any], str], Any] | Scorer | Judge
"""A scorer as text, a function, or a scorer."""


def scorers_of(given: Given | Iterable[Given]) -> list[Scorer | Judge]:
    """At least one, no two of one name. Raises ValueError, and OSError for a schema's file."""
    several = [given] if isinstance(given, str) or callable(given) or not isinstance(given, Iterable) else list(given)
    if not several:
        raise ValueError(f"score: {EXPECTED}")
    made = [scorer_of(each) for each in several]
    names = [each.name for each in made]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ValueError(f"score: {twice!r} is given twice")
    return made


def scorer_of(given: Given) -> Scorer | Judge:
    if isinstance(given, str):
        return of_text(given)
    if callable(given):
        return Function(getattr(given, "__name__", type(given).__name__), given)
    return given


def of_text(spec: str) -> Scorer | Judge:
    kind, colon, argument = spec.partition(":")
    try:
        if kind == "judge":
            return Judge(spec, argument.strip())
        if kind in KINDS and argument:
            return KINDS[kind](spec, argument)
        if colon and argument and kind not in KINDS:
            return Function(spec, function_of(spec))
    except ValueError as error:
        near = get_close_matches(kind, ("judge", *KINDS), n=1) if kind not in KINDS else []
        raise ValueError(f"score {spec!r}: {error}" + (f"; did you mean {near[0]!r}?" if near else "")) from None
    raise ValueError(f"score {spec!r}: {EXPECTED}")
