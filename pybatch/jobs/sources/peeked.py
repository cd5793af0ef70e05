"""Looks at the beginning of a source without taking it away."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from typing import Any

from pybatch.jobs.rows import Row, Source


class PeekedStream:
    """A stream of which the first rows have been read."""

    rereadable = False

    def __init__(self, source: Source, first: list[Row], rest: Iterator[Row]) -> None:
        self.name, self.typed = source.name, source.typed
        self._rows = chain(first, rest)

    def rows(self) -> Iterator[Row]:
        return self._rows

    def digest(self) -> None:
        return None


def peek(source: Source) -> tuple[dict[str, Any], Source]:
    """The fields of the first row that can be read, {} if there is none, and a source that still gives every row.
    Of a stream it waits for that row."""
    seen = []
    rows = source.rows()
    fields: dict[str, Any] = {}
    for row in rows:
        seen.append(row)
        if row.error is None:
            fields = row.fields
            break
    return fields, source if source.rereadable else PeekedStream(source, seen, rows)
