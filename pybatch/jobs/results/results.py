"""What gets a job's results."""

from __future__ import annotations

from typing import Protocol

from pybatch.jobs.record import Record


class Results(Protocol):
    """Gets each record after the journal has it."""

    name: str

    def begin(self) -> None:
        """Called once, before the first row runs. Raises OSError if results cannot be written."""

    def saved(self, record: Record) -> None:
        """Raises OSError, with the name, if the record cannot be written."""

    def publish(self, *, finished: bool) -> None:
        """At the end of a run: makes what is done visible. finished: every row has its record."""

    def close(self) -> None:
        """Called once, whatever has happened."""


class NoResults:
    """For a caller who takes them from the journal."""

    name = "no file"

    def begin(self) -> None:
        pass

    def saved(self, record: Record) -> None:
        pass

    def publish(self, *, finished: bool) -> None:
        pass

    def close(self) -> None:
        pass
