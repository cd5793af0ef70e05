"""Where a job's results go, and in which format."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

from pybatch.jobs.dialect import Dialect
from pybatch.jobs.disk.line_file import LineFile
from pybatch.jobs.journal import Journal
from pybatch.jobs.results.growing_file import GrowingFile
from pybatch.jobs.results.latitude import DatasetResults
from pybatch.jobs.results.results import NoResults, Results
from pybatch.jobs.results.stream import StreamResults
from pybatch.jobs.results.tables import TableFormat, table_format, write_joined, write_table
from pybatch.jobs.results.whole_file import OwnFiles, WholeFile, WriteLines, write_lines
from pybatch.jobs.rows import Source
from pybatch.latitude.addresses import DatasetAddress, is_dataset
from pybatch.latitude.project import Project

STANDARD = "-"


@dataclass(frozen=True)
class Destination:
    """Where results go, and what is done with those of an earlier run.

    output: a path, "-" for standard output, latitude:PROJECT/DATASET, None if the caller takes the results from the
    journal, which then is a temporary file. error_file: of the rows that failed; None: out.errors.jsonl beside
    out.jsonl, out.csv.errors.jsonl beside out.csv, so that outputs of several formats have error files of their own.
    unordered: rows are written as they finish. fresh: an earlier run is forgotten, and other files are replaced.
    retry_errors: rows that failed in an earlier run are run again.
    """

    output: str | None
    error_file: str | None = None
    unordered: bool = False
    fresh: bool = False
    retry_errors: bool = False

    @property
    def dataset(self) -> DatasetAddress | None:
        """Of Latitude, if the output is one."""
        return DatasetAddress.parse(self.output) if self.output is not None and is_dataset(self.output) else None

    @property
    def stem(self) -> str:
        """What files beside the output are called after, with its folder."""
        return (self.output or "") if self.dataset is None else self.dataset.local_name

    @property
    def errors(self) -> str:
        return self.error_file or f"{self.stem.removesuffix('.jsonl')}.errors.jsonl"

    @property
    def journal(self) -> str:
        return f"{self.stem}.journal"

    @property
    def files(self) -> tuple[str, ...]:
        """All that the job writes."""
        if self.output is None:
            return ()
        of_stream = () if self.error_file is None else (self.error_file,)
        return (self.output, *of_stream) if self.output == STANDARD else (self.output, self.errors, self.journal)

    def expect_free(self, journal: Journal, stream: LineFile | None) -> None:
        """So that what is wrong with a file is told of before the model loads. Raises FileExistsError for files that
        are not of the journal's job or are two at once, FileNotFoundError for a folder that is not there, ValueError
        for a format that cannot be written. stream: of the output, if it is one."""
        own = OwnFiles(journal)
        if self.output is None or stream is not None:
            if self.error_file is not None:
                own.expect(self.error_file, fresh=self.fresh)
            return
        if self.dataset is not None:
            if self.unordered:
                raise ValueError(f"unordered: expected an output of JSON Lines, got {self.output}")
            own.expect(self.errors, fresh=self.fresh)
            Project(self.dataset.project).expect()
            return
        output = self.output
        for other, what in ((output, "results"), (self.journal, "journal")):
            if os.path.realpath(self.errors) == os.path.realpath(other):
                raise FileExistsError(f"{self.errors} is the file of the {what}; the errors need one of their own")
        table = table_format(output)
        if self.unordered and table != TableFormat("jsonl"):
            raise ValueError(f"unordered: expected an output of JSON Lines, got {output}")
        growing = journal.notes.get("grows") and not journal.notes.get("finished")
        own.expect(output, fresh=self.fresh or bool(growing))
        own.expect(self.errors, fresh=self.fresh)

    def has_results(self, journal: Journal) -> bool:
        """Whether the results of a finished job are where it put them."""
        return self.dataset is not None or OwnFiles(journal).has(self.output or "")

    def joins(self, source: Source, dialect: Dialect, stream: LineFile | None) -> bool:
        """Whether results become columns beside those of the source, so that they need not hold its fields."""
        if self.output is None:
            return source.rereadable  # or its rows are gone
        if self.dataset is not None:
            return False
        typed = source.typed and stream is None and not self.unordered and dialect.extends_rows
        return typed and table_format(self.output).format == "parquet"

    def open(self, journal: Journal, source: Source, dialect: Dialect, stream: LineFile | None) -> Results:
        """stream: of the output, if it is one."""
        marked = dialect.extends_rows
        if self.output is None:
            return NoResults()
        if self.dataset is not None:
            from_dataset = getattr(source, "keeps_row_ids", False)  # of a LatitudeSource, or what is around one
            return DatasetResults(self.dataset, self.errors, journal, extends=marked, from_dataset=from_dataset)
        if stream is not None:
            return StreamResults(stream, journal, self.error_file, unordered=self.unordered, marked=marked)
        if self.unordered:
            return GrowingFile(self.output, self.errors, journal, apart=dialect.apart, marked=marked)
        write = writer(table_format(self.output), source if self.joins(source, dialect, stream) else None)
        return WholeFile(self.output, self.errors, journal, write, apart=dialect.apart, marked=marked)


def writer(table: TableFormat, source: Source | None) -> WriteLines:
    """Writes results in a format. source: of columns that the results are joined to; None: the results have them."""
    if table == TableFormat("jsonl"):
        return write_lines

    def write(file: BinaryIO, lines: Callable[[], Iterator[bytes]]) -> None:
        def rows() -> Iterator[dict[str, Any]]:
            return map(json.loads, lines())

        if source is None:
            write_table(file, table, rows)
        else:
            write_joined(file, source, rows)

    return write
