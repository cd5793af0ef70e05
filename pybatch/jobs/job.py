"""One bulk job: its rows, what has become of them, and where the results go. Whoever answers rows works on this."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from pybatch.api.outcomes import Answer, Failure, Outcome
from pybatch.jobs.check import Checked
from pybatch.jobs.dialect import Dialect, RowRequest
from pybatch.jobs.failures import FailureTally
from pybatch.jobs.fingerprint import content_digest
from pybatch.jobs.journal import Journal, JournalMismatchError
from pybatch.jobs.record import Record
from pybatch.jobs.results.results import Results
from pybatch.jobs.rows import Row, Source

if TYPE_CHECKING:
    from pybatch.api.progress import BatchProgress
    from pybatch.engine import SamplingParams
    from pybatch.engine.metrics import RequestMetrics
    from pybatch.engine.pooling_params import Params


@dataclass(frozen=True, slots=True)
class Saved:
    """A row that has just been saved. metrics: of the requests that have run for it. cached: as Job.save's."""

    row: Row
    outcome: Outcome
    metrics: tuple[RequestMetrics, ...]
    cached: bool


class Job:
    """Takes outcomes of rows, in any order, each row's once.

    params: for the rows' own to change. checked: what is known of the rows. fail_fast: the first row that fails ends
    the job, and stays without a record. with_fields: result rows hold the row's own fields.

    watchers: each is called with every row that is saved.
    """

    def __init__(
        self,
        source: Source,
        dialect: Dialect,
        params: SamplingParams,
        journal: Journal,
        results: Results,
        progress: BatchProgress,
        *,
        checked: Checked,
        fail_fast: bool = False,
        with_fields: bool = True,
    ) -> None:
        self.source, self.dialect, self.params = source, dialect, params
        self.journal, self.results, self.progress = journal, results, progress
        self._checked = checked
        self._fail_fast, self._with_fields = fail_fast, with_fields
        self.watchers: list[Callable[[Saved], object]] = []
        self.failures = FailureTally()  # of this run
        self.failure: str | None = None  # of the row that ended the job

    def pending(self) -> Iterator[Row]:
        """The rows that have no record yet, in the order of the input.

        Of a stream none comes before all rows that have a record are there again, since it might be another stream.
        Raises JournalMismatchError if it is.
        """
        return self.dialect.prepared(self._pending(), wait=self.source.rereadable)

    def _pending(self) -> Iterator[Row]:
        known = 0 if self.source.rereadable else self.journal.end
        held: list[Row] = []
        count = 0
        for row in self.source.rows():
            count = row.index + 1
            if row.index in self.journal:
                self.progress.resume(row.size, failed=self.journal.has_failed(row.index))
                if known and self.journal[row.index].digest != content_digest(row.fields):
                    raise JournalMismatchError(
                        f"{self.source.name}, {row.place}: not the row that an earlier run of this job has answered; "
                        "--fresh starts over"
                    )
            elif count > known:
                yield row
            else:
                held.append(row)
            if count <= known:
                self.request(row)  # later rows may not have its id
            if count == known:
                yield from held
                held.clear()
        if count < known:
            raise JournalMismatchError(
                f"{self.source.name}: ends after {count:,} rows, but an earlier run of this job has answered row "
                f"{known - 1:,}; --fresh starts over"
            )

    def request(self, row: Row) -> tuple[RowRequest, Params] | Failure:
        """What a row asks for, with which parameters, or what is wrong with it."""
        return self._checked.request(row, self.dialect, self.params)

    def save(
        self,
        row: Row,
        outcome: Outcome,
        *,
        key: int = 0,
        cached: bool = False,
        from_other_job: bool = False,
        metrics: Sequence[RequestMetrics] = (),
    ) -> None:
        """key, from_other_job: as Record's. cached: the answer was not computed for this row. metrics: of the requests
        that were.

        Raises OSError, with the file's name, if the row cannot be saved."""
        failed = isinstance(outcome, Failure)
        if isinstance(outcome, Failure) and self._fail_fast:
            self.failure = self.failure or f"{row.place}: {outcome.message}"
            return
        try:
            result = self._encode(row, outcome)
        except (ValueError, RecursionError) as error:  # numbers that JSON lacks, or too deep for the encoder
            failed, outcome = True, Failure(f"the row cannot be written: {error}")
            result = self._encode(replace(row, fields={}), outcome)
        record = Record(
            index=row.index,
            failed=failed,
            from_other_job=from_other_job,
            prompt_tokens=outcome.prompt_tokens if isinstance(outcome, Answer) else 0,
            output_tokens=outcome.output_tokens if isinstance(outcome, Answer) else 0,
            key=key,
            digest=0 if self.source.rereadable else content_digest(row.fields),
            result=result,
        )
        self.journal.append(record)
        self.results.saved(record)
        if isinstance(outcome, Failure):
            self.failures.add(outcome.code, row.place, outcome.message)
        self.progress.finish(row.size, record.prompt_tokens, failed=failed, cached=cached)
        for watch in self.watchers:
            watch(Saved(row, outcome, tuple(metrics), cached))

    def fail_rest(self, failure: Failure) -> None:
        """Saves the failure for every row of a source that can be read again which has no record, so that none is
        pending."""
        for row in self.source.rows():
            if row.index not in self.journal:
                self.save(row, failure)

    def _encode(self, row: Row, outcome: Outcome) -> bytes:
        fields = self._with_fields or isinstance(outcome, Failure)
        result = self.dialect.result(row, outcome, fields=fields)
        # An unpaired surrogate has no UTF-8 form; backslashreplace makes it the JSON escape that it came from.
        return json.dumps(result, ensure_ascii=False, allow_nan=False).encode(errors="backslashreplace")
