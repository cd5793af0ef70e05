"""The failed rows of a job by kind, for people to see what went wrong without reading the error file."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field


@dataclass(slots=True)
class FailureKind:
    """code: as Failure's. examples: the places and messages of the first of its rows."""

    code: str
    count: int = 0
    examples: list[tuple[str, str]] = field(default_factory=list)


class FailureTally:
    """Counts failures by their code and keeps the first few of each. Its memory is bounded: codes are few, and messages
    are cut."""

    EXAMPLES, MESSAGE = 3, 300  # of each kind, and characters of each

    def __init__(self) -> None:
        self._kinds: dict[str, FailureKind] = {}

    def add(self, code: str, place: str, message: str) -> None:
        """place: where the row stands, as Row's."""
        kind = self._kinds.setdefault(code, FailureKind(code))
        kind.count += 1
        if len(kind.examples) < self.EXAMPLES:
            cut = message if len(message) <= self.MESSAGE else f"{message[: self.MESSAGE]}…"
            kind.examples.append((place, cut))

    def __iter__(self) -> Iterator[FailureKind]:
        """The most frequent first."""
        return iter(sorted(self._kinds.values(), key=lambda kind: -kind.count))
