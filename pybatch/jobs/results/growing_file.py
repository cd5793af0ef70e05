"""A result file that grows as rows finish, and still has each of them exactly once."""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import chain
from typing import BinaryIO

from pybatch.jobs.disk.line_file import LineFile
from pybatch.jobs.disk.publishing import stamp
from pybatch.jobs.journal import Journal
from pybatch.jobs.record import Record
from pybatch.jobs.results.marks import Marks
from pybatch.jobs.results.whole_file import OwnFiles, publish_failed


class GrowingFile:
    """JSON Lines in the order in which rows finish. The journal has a row first, so that this file is a copy of its
    records up to some byte; `begin` makes it one again after a kill or a power failure.

    errors, apart, marked: as WholeFile's.
    """

    def __init__(self, name: str, errors: str, journal: Journal, *, apart: bool = False, marked: bool = False) -> None:
        self.name, self._errors, self._journal, self._apart = name, errors, journal, apart
        self._marked = marked
        self._marks = Marks(marked=marked)
        self._own = OwnFiles(journal)
        self._file: LineFile | None = None

    def begin(self) -> None:
        """Raises FileExistsError if another file is there, or this one has lines that the journal does not know."""
        self._own.expect(self._errors)
        known = self._journal.notes.get("grows", False)
        self._journal.note(grows=True)  # before the file is created, or a kill between the two would leave a stranger
        target = os.path.realpath(self.name)  # a link that leads nowhere is no file yet
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
        try:
            fd = os.open(target, flags | (0 if known or self._own.has(self.name) else os.O_EXCL), 0o666)
        except FileExistsError:
            raise FileExistsError(f"{self.name} exists; --fresh replaces it") from None
        self._file = LineFile(self.name, fd)
        if not known:
            os.ftruncate(fd, 0)
        with open(os.dup(fd), "rb") as written:
            end, missing = compare(written, self._lines())
        if end is None:
            if not self._journal.notes.get("forget_failed"):  # after which the lines of failed rows are to go
                raise FileExistsError(f"{self.name} is not as this job left it; move it away and it is written anew")
            end, missing = 0, self._lines()
        os.ftruncate(fd, end)
        for line in missing:
            self._file.append(line)
        if self._journal.notes.get("forget_failed"):  # a file that differs from now on is not as this job left it
            os.fsync(fd)
            self._journal.note(forget_failed=False)

    def saved(self, record: Record) -> None:
        if self._file is not None and not (self._apart and record.failed):
            self._file.append(self._marks.line(record) + b"\n")

    def publish(self, *, finished: bool) -> None:
        if self._file is not None:
            if finished:
                stamp(self._file.fileno(), self._journal.header["tag"])
            os.fsync(self._file.fileno())
        publish_failed(self._errors, self._journal, self._own)
        if finished:
            self._journal.finish()

    def close(self) -> None:
        if self._file is not None:
            self._file.close()

    def _lines(self) -> Iterator[bytes]:
        """What the file is to have, from its beginning."""
        self._marks = Marks(marked=self._marked)
        for record in self._journal.as_finished():
            if not (self._apart and record.failed):
                yield self._marks.line(record) + b"\n"


def compare(written: BinaryIO, lines: Iterator[bytes]) -> tuple[int | None, Iterator[bytes]]:
    """Where the file ends that has as many of the lines, whole, as what is written; None if it is not the beginning of
    them. Then the lines that are missing.

    Lines behind the last known one are of rows that a power failure has taken from the journal: they run again.
    """
    end = 0
    for line in lines:
        found = written.read(len(line))
        if found != line:
            return (end if line.startswith(found) else None), chain([line], lines)
        end += len(line)
    return end, iter(())
