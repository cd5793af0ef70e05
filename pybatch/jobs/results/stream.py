"""Results that go into a pipe, a terminal or a device."""

from __future__ import annotations

from pybatch.jobs.disk.line_file import LineFile
from pybatch.jobs.journal import Journal
from pybatch.jobs.record import Record
from pybatch.jobs.results.marks import Marks
from pybatch.jobs.results.whole_file import OwnFiles, publish_failed


class StreamResults:
    """JSON Lines in input order: a row waits, in the journal, for those before it; unless unordered. Rows that failed
    are among them in every dialect, since a stream has no error file beside it; errors: a path where they go too.

    A job whose results go into a stream cannot be resumed: its journal is a temporary file.
    """

    def __init__(
        self,
        file: LineFile,
        journal: Journal,
        errors: str | None = None,
        *,
        unordered: bool = False,
        marked: bool = False,
    ) -> None:
        self.name = file.name
        self._file, self._journal, self._unordered = file, journal, unordered
        self._marks = Marks(marked=marked)
        self._errors, self._own = errors, OwnFiles(journal)
        self._next = 0

    def begin(self) -> None:
        pass

    def saved(self, record: Record) -> None:
        if self._unordered:
            self._emit(record)
        else:
            while self._next in self._journal:
                self._emit(record if record.index == self._next else self._journal[self._next])
                self._next += 1

    def publish(self, *, finished: bool) -> None:
        """After an interrupted run: the rows that were waiting for others."""
        if not self._unordered:
            for record in self._journal.following(self._next):
                self._emit(record)
                self._next = record.index + 1
        if self._errors is not None:
            publish_failed(self._errors, self._journal, self._own)

    def close(self) -> None:
        self._file.close()

    def _emit(self, record: Record) -> None:
        self._file.append(self._marks.line(record) + b"\n")
