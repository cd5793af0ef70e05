"""A job's rows and where they come from."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True, slots=True)
class Row:
    """One row of the input.

    index: its position among all rows of the job, from 0; blank lines are not counted. place: where it stands, for
    messages: "line 7", "b.csv, line 7", "row 7". size: about how many bytes it takes. error: why it cannot be read;
    fields then holds its text as "line".
    """

    index: int
    place: str
    size: int
    fields: dict[str, Any]
    error: str | None = None


def request_number(row: int, prompt: int) -> int:
    """What a request's draws depend on where it has no seed, and what tells it from all others of the job. row, prompt:
    the row's index, and the prompt's among those of the row."""
    return row + (prompt << 40)


class Source(Protocol):
    """Rows that a job answers.

    name: for messages. rereadable: rows() may be called again and gives the same rows; False for a stream. typed: its
    columns have types that JSON lacks (Parquet, Arrow, frames), so that results are joined to them as columns where the
    output has types too.
    """

    name: str
    rereadable: bool
    typed: bool

    def rows(self) -> Iterator[Row]:
        """The rows from the first on. Raises OSError if they cannot be read."""

    def digest(self) -> str | None:
        """A hash of what is read, for the job's fingerprint; None for a stream."""
