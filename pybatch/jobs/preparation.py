"""A job before its model is loaded: what it reads, where its results go, and whether it goes on with an earlier run."""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, Self

import pybatch
from pybatch.jobs.cache_keys import CacheKeys
from pybatch.jobs.check import Checked, CheckedAsRead, check_rows
from pybatch.jobs.dialect import Dialect
from pybatch.jobs.dialects.choose import dialect_of
from pybatch.jobs.dialects.plain import PlainDialect
from pybatch.jobs.fingerprint import Fingerprint, differences, model_fingerprint
from pybatch.jobs.growing_file import GrowingFile
from pybatch.jobs.job import Job
from pybatch.jobs.job_answers import JobAnswers
from pybatch.jobs.journal import Journal
from pybatch.jobs.line_file import LineFile
from pybatch.jobs.publishing import changed_at
from pybatch.jobs.results import NoResults, OwnFiles, Results, WholeFile, WriteLines, write_lines
from pybatch.jobs.rows import Source
from pybatch.jobs.sources.formats import stem
from pybatch.jobs.sources.peeked import peek
from pybatch.jobs.stream_results import StreamResults
from pybatch.jobs.tables import TableFormat, table_format, write_joined, write_table
from pybatch.jobs.template import Template

if TYPE_CHECKING:
    from pybatch.api.progress import BatchProgress
    from pybatch.engine import SamplingParams
    from pybatch.jobs.row_runner import RowSession
    from pybatch.model.text.tokenizer import Tokenizer

OnError = Literal["skip", "fail"]
ANSWERS_DEPEND_ON = (
    "tokenizer",
    "dtype",
    "quantization",
    "kv_cache_dtype",
    "max_model_len",
    "device",
    "seed",
    "generation_config",
)


class OtherJobError(ValueError):
    """A journal of a job with other answers is there. differences: name, earlier and present value of each."""

    def __init__(self, journal: str, differences: list[tuple[str, str, str]]) -> None:
        super().__init__(f"{journal} is of another job; --fresh starts over")
        self.differences = differences


@dataclass(frozen=True)
class Destination:
    """Where results go, and what is done with those of an earlier run.

    output: a path, "-" for standard output, None if the caller takes the results from the journal, which then is a
    temporary file. error_file: of the rows that failed; None: beside the output, with its name
    and the ending .errors.jsonl. unordered: rows are written as they finish. fresh: an earlier run is forgotten, and
    other files are replaced. retry_errors: rows that failed in an earlier run are run again.
    """

    output: str | None
    error_file: str | None = None
    unordered: bool = False
    fresh: bool = False
    retry_errors: bool = False

    @property
    def errors(self) -> str:
        return self.error_file or f"{stem(self.output or '')}.errors.jsonl"

    @property
    def journal(self) -> str:
        return f"{self.output}.journal"


@dataclass(frozen=True)
class RowOptions:
    """How rows become prompts.

    format: one of DIALECTS; None: what the first row is. prompt_template: text with {field} where a row's field goes.
    system: a system message in front of every conversation. raw: the model completes text as it is, without its chat
    template.
    """

    format: str | None = None
    prompt_template: str | None = None
    system: str | None = None
    raw: bool = False

    def dialect(self, source: Source, created: int) -> tuple[Dialect, Source]:
        """And the source, of which a stream's first row has been looked at. created: as of dialect_of."""
        template = None if self.prompt_template is None else Template(self.prompt_template)
        first: dict[str, Any] = {}
        if template is None:
            first, source = peek(source)
        made = dialect_of(self.format, first, created=created, template=template, system=self.system, chat=not self.raw)
        return made, source


@dataclass(frozen=True)
class CheckedRows:
    """Rows, what they hold, and what a look at each has found. options: how they were read."""

    source: Source
    dialect: Dialect
    checked: Checked
    options: RowOptions


def check_input(source: Source, options: RowOptions, *, sampling: Mapping[str, Any], created: int) -> CheckedRows:
    """Looks at every row of a source that can be read twice.

    sampling: the arguments of SamplingParams that were given. created: the date in results that bear one, in seconds
    since 1970. Raises ValueError for wrong options, OSError if the rows cannot be read.
    """
    from pybatch.engine import SamplingParams

    params = SamplingParams(**{"max_tokens": None, **sampling})
    dialect, source = options.dialect(source, created)
    checked = check_rows(source, dialect, params) if source.rereadable else CheckedAsRead()
    return CheckedRows(source, dialect, checked, options)


def prepare(
    rows: CheckedRows,
    destination: Destination,
    *,
    model: str | Path,
    engine: Mapping[str, Any],
    sampling: Mapping[str, Any],
    stream: LineFile | None = None,
    keep_records: bool = False,
) -> Preparation:
    """Opens the job's journal. engine, sampling: the arguments that were given. stream, keep_records: as Preparation's.

    Raises ValueError for what is wrong with the job as a whole (OtherJobError, ModelError), OSError for files.
    """
    from pybatch.model.checkpoints.find import find_model

    fingerprint: Fingerprint = {
        "model": model_fingerprint(find_model(model)),
        **{name: str(engine[name]) for name in ANSWERS_DEPEND_ON if engine.get(name) is not None},
        **sampling,
        **{name: value for name, value in asdict(rows.options).items() if value not in (None, False)},
        "format": rows.dialect.name,
        "input": rows.source.digest(),
    }
    return Preparation(rows, destination, fingerprint, stream, keep_records=keep_records)


class Preparation:
    """Holds the journal, which no other process may use meanwhile, and the place of the results.

    Leaving its block closes both. A journal that was created here and never begun is removed.
    """

    def __init__(
        self,
        rows: CheckedRows,
        destination: Destination,
        fingerprint: Fingerprint,
        stream: LineFile | None = None,
        *,
        keep_records: bool = False,
    ) -> None:
        """stream: of the destination, if it is one (open_stream), which is closed too. keep_records: the journal of a
        finished job keeps what the output has too.

        Raises OtherJobError, FileExistsError for files that are not this job's, and OSError."""
        self.source, self.dialect, self.checked = rows.source, rows.dialect, rows.checked
        self.destination, self._fingerprint, self._stream = destination, fingerprint, stream
        self._results: Results | None = None
        self._progress: BatchProgress | None = None
        self._keep_records = keep_records
        self.journal = self._open_journal() if self.resumable else temporary_journal()
        try:
            if self.resumable:
                self._expect_free()
        except BaseException:
            self.close()
            raise

    def _open_journal(self) -> Journal:
        journal = Journal.open(self.destination.journal)
        earlier = journal.header.get("fingerprint")
        if earlier is not None and not self.destination.fresh and earlier != self._fingerprint:
            journal.close()
            raise OtherJobError(journal.name, differences(earlier, self._fingerprint))
        return journal

    def _expect_free(self) -> None:
        """So that what is wrong with the output is told of before the model loads."""
        output = self.destination.output or ""
        table = table_format(output)
        if self.destination.unordered and table != TableFormat("jsonl"):
            raise ValueError(f"unordered: expected an output of JSON Lines, got {output}")
        own, fresh = OwnFiles(self.journal), self.destination.fresh
        own.expect(output, fresh=fresh or bool(self.journal.notes.get("grows")))
        own.expect(self.destination.errors, fresh=fresh)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    @property
    def finished(self) -> bool:
        """Whether an earlier run has answered every row, and its results are where it put them."""
        again = self.destination.fresh or (self.destination.retry_errors and self.journal.failed)
        return bool(
            not again
            and self.journal.notes.get("finished")
            and (self.journal.notes.get("grows") or OwnFiles(self.journal).has(self.destination.output or ""))
        )

    @property
    def rows_done(self) -> int:
        """By earlier runs."""
        return 0 if self.destination.fresh else self.journal.done

    @property
    def rows_saved(self) -> int:
        """In the journal, or of a job that has none in the stream."""
        return self.journal.done if self.resumable else self._progress.rows_done if self._progress else 0

    @property
    def resumable(self) -> bool:
        """Whether the journal outlives the process."""
        return self._stream is None and self.destination.output is not None

    @property
    def shows_on_terminal(self) -> bool:
        """Whether results are printed where a progress bar would be."""
        return self._stream is not None and os.isatty(self._stream.fileno())

    def start(
        self,
        tokenizer: Tokenizer | None,
        params: SamplingParams,
        progress: BatchProgress,
        *,
        on_error: OnError = "skip",
    ) -> Job:
        """To be called once the model is loaded: until then nothing of an earlier run is touched.

        Raises ValueError if the rows need what the model has not, OSError, and FileExistsError.
        """
        journal, to = self.journal, self.destination
        dialect = for_model(self.dialect, tokenizer)
        if to.fresh or not journal.header or (journal.notes.get("finished") and not journal.done):
            replaces = [changed_at(path) for path in (to.output, to.errors) if path] if to.fresh else []
            journal.begin(
                {
                    "pybatch": pybatch.__version__,
                    "started": time.time(),
                    "fingerprint": self._fingerprint,
                    "replaces": replaces,
                }
            )
        journal.keeps_records = self._keep_records
        ways = {"apart": dialect.apart, "marked": dialect.extends_rows}
        joined = False
        if to.output is None:
            self._results = NoResults()
            joined = self.source.rereadable  # or its rows are gone
        elif self._stream is not None:
            self._results = StreamResults(self._stream, journal, unordered=to.unordered, marked=dialect.extends_rows)
        elif to.unordered:
            self._results = GrowingFile(to.output, to.errors, journal, **ways)
        else:
            table = table_format(to.output)
            joined = self.source.typed and table.format == "parquet" and dialect.extends_rows
            write = writer(table, self.source if joined else None)
            self._results = WholeFile(to.output, to.errors, journal, write, **ways)
        self._results.begin()
        self._progress = progress
        progress.rows_retried = journal.failed if to.retry_errors else 0
        return Job(
            self.source,
            dialect,
            params,
            journal,
            self._results,
            progress,
            checked=self.checked,
            retry=to.retry_errors,
            fail_fast=on_error == "fail",
            with_fields=not joined,
        )

    def answers(self, session: RowSession, folder: Path | None) -> JobAnswers:
        """session: that is to run the job. folder: of answers that other jobs may use too. Once the job is started."""
        of_model = {"model", *ANSWERS_DEPEND_ON} - {"max_model_len", "seed"}  # which the keys have as they take effect
        model = {name: self._fingerprint.get(name) for name in sorted(of_model)}
        model["arithmetic"] = session.arithmetic
        keys = CacheKeys(json.dumps(model), max_model_len=session.max_model_len, engine_seed=session.config.seed)
        return JobAnswers(keys, self.journal.job_id, folder)

    def publish_what_there_is(self) -> None:
        """After an error, which may be that nothing can be written."""
        with suppress(OSError):
            if self._results is not None:
                self._results.publish(finished=False)

    def close(self) -> None:
        if self._results is not None:
            self._results.close()
        elif self._stream is not None:
            self._stream.close()
        self.discard_unused()
        self.journal.close()

    def discard_unused(self) -> None:
        """Removes a journal that nothing has been written to. May be called by a signal's handler."""
        if self.resumable and not self.journal.header:
            with suppress(OSError):
                self.journal.remove()


def for_model(dialect: Dialect, tokenizer: Tokenizer | None) -> Dialect:
    """Text is no user's message for a model without a chat template, which completes it as it is."""
    if isinstance(dialect, PlainDialect) and dialect.chat and (tokenizer is None or tokenizer.chat_template is None):
        if dialect.system is not None:
            raise ValueError("system: the model has no chat template, which a system message needs")
        return replace(dialect, chat=False)
    return dialect


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


def temporary_journal() -> Journal:
    fd, path = tempfile.mkstemp(prefix="pybatch-")
    os.unlink(path)
    return Journal(LineFile("a temporary file", fd))
