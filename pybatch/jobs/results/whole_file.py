"""A result file that appears as a whole."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import BinaryIO

from pybatch.jobs.disk.publishing import SECOND, changed_at, expect_place, publish
from pybatch.jobs.journal import Journal
from pybatch.jobs.record import Record
from pybatch.jobs.results.marks import Marks

WriteLines = Callable[[BinaryIO, Callable[[], Iterator[bytes]]], None]
"""Writes result rows, lines of JSON without newlines, to an open file; the function that gives them may be called
again."""


class OwnFiles:
    """Files that a job puts in place by a rename, and knows again later as its own."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal

    def expect(self, path: str, *, fresh: bool = False) -> None:
        """Raises FileExistsError if another file is at the path, unless fresh, and OSError if none can be."""
        expect_place(path)
        if not fresh and os.path.exists(path) and not self.has(path):
            what = "is not as this job left it" if self._journal.done else "exists"
            raise FileExistsError(f"{path} {what}; --fresh replaces it")

    def has(self, path: str) -> bool:
        """Whether the file is there, as the job left it or as it found it when it was told to replace it."""
        changed = changed_at(path)
        return changed is not None and (
            changed % SECOND == self._journal.tag or changed in self._journal.header.get("replaces", ())
        )

    def put(self, path: str, write: Callable[[BinaryIO], None]) -> None:
        assert self._journal.tag is not None
        publish(path, write, replace=self.has(path), tag=self._journal.tag)

    def remove(self, path: str) -> None:
        if self.has(path):
            os.unlink(path)


class WholeFile:
    """A file that appears by a rename, with all rows in input order, when the job is done; after a run that was
    interrupted, with the rows that are done. Beside it a file of the rows that failed, if there are any.

    errors: that file's path. apart: failed rows are in it alone. marked: as Marks'. write: in the format of the file.
    """

    def __init__(
        self, name: str, errors: str, journal: Journal, write: WriteLines, *, apart: bool = False, marked: bool = False
    ) -> None:
        self.name, self._errors, self._journal, self._write = name, errors, journal, write
        self._apart, self._marked = apart, marked
        self._own = OwnFiles(journal)

    def begin(self) -> None:
        """Raises FileExistsError if another file is there."""
        self._own.expect(self.name)
        self._own.expect(self._errors)

    def saved(self, record: Record) -> None:
        pass

    def publish(self, *, finished: bool) -> None:
        if finished or self._journal.done:
            self._own.put(self.name, lambda file: self._write(file, self._lines))
            publish_failed(self._errors, self._journal, self._own)
        if finished:
            self._journal.finish()

    def close(self) -> None:
        pass

    def _lines(self) -> Iterator[bytes]:
        marks = Marks(marked=self._marked, rows=self._journal.done)
        return (marks.line(record) for record in self._journal if not (self._apart and record.failed))


def publish_failed(path: str, journal: Journal, own: OwnFiles) -> None:
    """The result rows of those that failed, as JSON Lines."""
    if journal.failed:
        own.put(path, lambda file: write_lines(file, lambda: (record.result for record in journal if record.failed)))
    else:
        own.remove(path)


def write_lines(file: BinaryIO, lines: Callable[[], Iterator[bytes]]) -> None:
    """As JSON Lines."""
    file.writelines(line + b"\n" for line in lines())
