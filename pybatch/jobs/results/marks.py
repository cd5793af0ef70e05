"""Which result rows say that their answer was there before."""

from __future__ import annotations

from pybatch.jobs.answers.duplicates import KeySet
from pybatch.jobs.record import Record

MARK = b', "cached": true}'


class Marks:
    """Makes lines of a job's records, in the order in which they are written, and marks those whose answer an earlier
    line or another job has. So the marks are the same however the job was cut or ordered.

    marked: whether the dialect has a place for the mark. rows: how many records there may be; more are taken too.
    """

    def __init__(self, *, marked: bool, rows: int = 0) -> None:
        self._marked = marked
        self._seen = KeySet(rows)

    def line(self, record: Record) -> bytes:
        """The result row as a line of JSON, without the newline."""
        if not self._marked or record.failed or not record.key:
            return record.result
        repeated = not self._seen.add(record.key)
        return record.result[:-1] + MARK if repeated or record.from_other_job else record.result
