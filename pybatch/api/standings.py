"""One value for all prompts of a call, or one for each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import repeat
from numbers import Integral, Real
from typing import Any, TypeAlias, TypeVar

T = TypeVar("T")
ForEach: TypeAlias = T | Sequence[T] | None

_KINDS: dict[str, tuple[type, str]] = {
    "priority": (Integral, "an integer"),
    "user": (str, "text"),
    "ttft_target": (Real, "a number of seconds"),
    "tpot_target": (Real, "a number of seconds"),
}


def standings(count: int, **given: Any) -> Iterator[dict[str, Any]]:
    """For each of `count` prompts the fields of its Standing, which are not checked. given: fields, each one for all
    prompts or one for each; None for the default.

    Raises TypeError or ValueError for what is neither.
    """
    columns = {name: _column(name, value, count) for name, value in given.items() if value is not None}
    return ({name: next(column) for name, column in columns.items()} for _ in range(count))


def _column(name: str, value: Any, count: int) -> Iterator[Any]:
    kind, expected = _KINDS[name]
    if isinstance(value, kind) and not isinstance(value, bool):
        return repeat(value)
    if isinstance(value, str | bytes) or not isinstance(value, Sequence):
        raise TypeError(f"{name}: expected {expected}, or one for each prompt, got {value!r:.80}")
    if len(value) != count:
        raise ValueError(f"{name}: expected one, or one for each of {count} prompts, got {len(value)}")
    return iter(value)
