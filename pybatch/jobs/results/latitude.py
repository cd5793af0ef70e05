"""Results that go into a data set of Latitude."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from pybatch.jobs.journal import Journal
from pybatch.jobs.record import Record
from pybatch.jobs.results.marks import Marks
from pybatch.jobs.results.whole_file import OwnFiles, publish_failed
from pybatch.latitude.addresses import DatasetAddress
from pybatch.latitude.project import Project
from pybatch.latitude.rows import row_of
from pybatch.latitude.trace_ids import trace_id


class DatasetResults:
    """Rows of the data set, in input order, when the job is done; after a run that was interrupted, those that are
    done. A row has the same id however often the job is run or cut, so that it is there once.

    errors: the path of a file of those that failed, which the data set has too. extends: whether results are rows with
    fields after them. from_dataset: whether the rows came from a data set, whose ids stay.
    """

    def __init__(
        self, address: DatasetAddress, errors: str, journal: Journal, *, extends: bool, from_dataset: bool
    ) -> None:
        self.name = str(address)
        self._project, self._dataset = Project(address.project), address.dataset
        self._errors, self._journal, self._own = errors, journal, OwnFiles(journal)
        self._extends, self._from_dataset = extends, from_dataset

    def begin(self) -> None:
        """Makes the data set if it is not there."""
        self._own.expect(self._errors)
        self._project.expect_dataset(self._dataset)

    def saved(self, record: Record) -> None:
        pass

    def publish(self, *, finished: bool) -> None:
        """Raises LatitudeError. Then the journal has the rows, and the same job again puts them there."""
        self._project.insert(self._dataset, self._rows())
        publish_failed(self._errors, self._journal, self._own)
        if finished:
            self._journal.finish()

    def close(self) -> None:
        pass

    def _rows(self) -> Iterator[dict[str, Any]]:
        marks = Marks(marked=self._extends, rows=self._journal.done)
        job = self._journal.job_id
        for record in self._journal:
            yield row_of(
                json.loads(marks.line(record)),
                f"{self._journal.tag}-{record.index}",
                trace_id(job, record.index),
                extends=self._extends,
                from_dataset=self._from_dataset,
            )
