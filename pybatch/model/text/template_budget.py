"""What one rendering of a chat template may spend: steps, and the size of what it reads and makes.

What a template may do depends on the template and its arguments alone. A limit of processor time stands behind it.
"""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, MappingView, Sequence, Set
from contextlib import contextmanager
from typing import Any

STEP = 64  # the cost of a step, or of an element of a list; that of a character is 1, or 4 if it is not ASCII
BASE, PER_INPUT = 64_000_000, 200  # a rendering may spend the first, and so much for each unit of its arguments
LARGEST = 1 / 4  # of the budget, which one value may weigh
SECONDS = 1.0  # of processor time
LONGEST_INTEGER = 4096  # bits


class LimitError(RuntimeError):
    """A template that spends more than its budget."""


class Budget:
    """What one rendering may still spend."""

    def __init__(self, *arguments: object) -> None:
        self._weights: dict[int, tuple[object, int]] = {}  # of containers, which are kept so that ids stay theirs
        self._left = self._largest = float("inf")
        self._left = BASE + PER_INPUT * sum(self.weight(argument) for argument in arguments)
        self._largest = self._left * LARGEST
        self._begin, self._look_at = time.thread_time(), time.monotonic() + SECONDS

    def spend(self, cost: float) -> None:
        self._left -= cost
        if self._left < 0:
            raise LimitError("it takes more steps, or makes more text, than a chat can need")

    def step(self, cost: float = 0) -> None:
        """Spends a step, and what it costs beyond that."""
        self.spend(STEP + cost)
        if time.monotonic() > self._look_at:
            used = time.thread_time() - self._begin
            if used > SECONDS:
                raise LimitError(f"it takes more than {SECONDS:g} s")
            self._look_at = time.monotonic() + SECONDS - used

    def weight(self, value: Any) -> int:
        """The size of a value with everything in it; what is in it twice counts twice."""
        kind = type(value)
        if kind is str or isinstance(value, str):
            return len(value) if value.isascii() else 4 * len(value)
        if kind is dict or kind is list or _is_container(kind):  # type: ignore[arg-type]
            known = self._weights.get(id(value))
            if known is None:
                known = self._weights[id(value)] = (value, self._weigh(value))
            return known[1]
        if isinstance(value, int) and value.bit_length() > LONGEST_INTEGER:
            raise LimitError(f"it makes an integer of more than {LONGEST_INTEGER} bits")
        return STEP

    def take(self, value: Any) -> Any:
        """Returns a new value. Raises LimitError if it is too large."""
        weight = self.weight(value)
        if isinstance(value, str):
            self.spend(weight)
        if weight > self._largest:
            raise LimitError("it makes a value larger than a chat can need")
        return value

    def _weigh(self, container: Any) -> int:
        self.spend(STEP * len(container))
        parts: list[Iterable[object]] = [container]
        if isinstance(container, Mapping):
            parts.append(container.values())
        return STEP + sum(STEP + self.weight(each) for part in parts for each in part)


@functools.lru_cache(maxsize=1024)
def _is_container(kind: type) -> bool:
    return issubclass(kind, _CONTAINERS) and kind is not range


_CONTAINERS = (Mapping, MappingView, Sequence, Set)


_current = threading.local()


def budget() -> Budget:
    current: Budget = _current.budget
    return current


@contextmanager
def new_budget(*arguments: object) -> Iterator[None]:
    """The budget of one rendering with these arguments, on this thread."""
    _current.budget = Budget(*arguments)
    try:
        yield
    finally:
        del _current.budget
