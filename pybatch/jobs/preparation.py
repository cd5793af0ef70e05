"""A job before its model is loaded: what it reads, where its results go, and whether it goes on with an earlier run."""

from __future__ import annotations

import errno
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, Self

import pybatch
from pybatch.jobs.cache_keys import CacheKeys
from pybatch.jobs.check import Checked
from pybatch.jobs.dialect import Dialect
from pybatch.jobs.fingerprint import Fingerprint, differences, model_fingerprint
from pybatch.jobs.growing_file import GrowingFile
from pybatch.jobs.job import Job
from pybatch.jobs.job_answers import JobAnswers
from pybatch.jobs.journal import Journal
from pybatch.jobs.line_file import LineFile
from pybatch.jobs.publishing import changed_at
from pybatch.jobs.results import OwnFiles, Results, WholeFile, WriteLines, write_lines
from pybatch.jobs.rows import Source
from pybatch.jobs.sources.formats import stem
from pybatch.jobs.stream_results import StreamResults
from pybatch.jobs.tables import TableFormat, table_format, write_joined, write_table

if TYPE_CHECKING:
    from pybatch.api.progress import BatchProgress
    from pybatch.engine import EngineConfig, SamplingParams

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

    output: a path, "-" for standard output. error_file: of the rows that failed; None: beside the output, with its name
    and the ending .errors.jsonl. unordered: rows are written as they finish. fresh: an earlier run is forgotten, and
    other files are replaced. retry_errors: rows that failed in an earlier run are run again.
    """

    output: str
    error_file: str | None = None
    unordered: bool = False
    fresh: bool = False
    retry_errors: bool = False

    @property
    def errors(self) -> str:
        return self.error_file or f"{stem(self.output)}.errors.jsonl"

    @property
    def journal(self) -> str:
        return f"{self.output}.journal"


def job_fingerprint(
    model: str | Path, engine: Mapping[str, Any], sampling: Mapping[str, Any], rows: Mapping[str, Any]
) -> Fingerprint:
    """engine, sampling: the arguments that were given. rows: how rows become prompts, and the digest of the input.
    Raises ModelError if there is no such model."""
    from pybatch.model.checkpoints.find import find_model

    parts: Fingerprint = {"model": model_fingerprint(find_model(model))}
    parts |= {name: str(engine[name]) for name in ANSWERS_DEPEND_ON if name in engine}
    parts |= {name: value for name, value in sampling.items() if value is not None}
    return parts | {name: value for name, value in rows.items() if value is not None}


class Preparation:
    """Holds the journal, which no other process may use meanwhile, and the place of the results.

    Leaving its block closes both. A journal that was created here and never begun is removed.
    """

    def __init__(
        self, source: Source, destination: Destination, fingerprint: Fingerprint, stream: LineFile | None = None
    ) -> None:
        """stream: of the destination, if it is one (open_stream), which is closed too.

        Raises OtherJobError, FileExistsError for files that are not this job's, and OSError."""
        self.source, self.destination, self._fingerprint = source, destination, fingerprint
        self._stream = stream
        self._results: Results | None = None
        self._progress: BatchProgress | None = None
        self.journal = self._open_journal() if self._stream is None else temporary_journal()
        try:
            if self._stream is None:
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
        table = table_format(self.destination.output)
        if self.destination.unordered and table != TableFormat("jsonl"):
            raise ValueError(f"unordered: expected an output of JSON Lines, got {self.destination.output}")
        if os.path.isdir(self.destination.output):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), self.destination.output)
        own, fresh = OwnFiles(self.journal), self.destination.fresh
        own.expect(self.destination.output, fresh=fresh or bool(self.journal.notes.get("grows")))
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
            and (self.journal.notes.get("grows") or OwnFiles(self.journal).has(self.destination.output))
        )

    @property
    def rows_done(self) -> int:
        """By earlier runs."""
        return 0 if self.destination.fresh else self.journal.done

    @property
    def rows_saved(self) -> int:
        """In the journal, or of a job that has none in the stream."""
        return self.journal.done if self._stream is None else self._progress.rows_done if self._progress else 0

    @property
    def resumable(self) -> bool:
        return self._stream is None

    @property
    def shows_on_terminal(self) -> bool:
        """Whether results are printed where a progress bar would be."""
        return self._stream is not None and os.isatty(self._stream.fileno())

    def start(
        self,
        dialect: Dialect,
        params: SamplingParams,
        progress: BatchProgress,
        checked: Checked,
        *,
        on_error: OnError = "skip",
    ) -> Job:
        """To be called once the model is loaded: until then nothing of an earlier run is touched."""
        journal, to = self.journal, self.destination
        if to.fresh or not journal.header or (journal.notes.get("finished") and not journal.done):
            replaces = [changed_at(path) for path in (to.output, to.errors)] if to.fresh else []
            journal.begin(
                {
                    "pybatch": pybatch.__version__,
                    "started": time.time(),
                    "fingerprint": self._fingerprint,
                    "replaces": replaces,
                }
            )
        ways = {"apart": dialect.apart, "marked": dialect.extends_rows}
        joined = False
        if self._stream is not None:
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
            checked=checked,
            retry=to.retry_errors,
            fail_fast=on_error == "fail",
            with_fields=not joined,
        )

    def answers(self, config: EngineConfig, max_model_len: int, folder: Path | None) -> JobAnswers:
        """config, max_model_len: of the engine. folder: of answers that other jobs may use too. Once the job is
        started."""
        from pybatch.machine.facts import arithmetic

        of_model = {"model", *ANSWERS_DEPEND_ON} - {"max_model_len", "seed"}  # which the keys have as they take effect
        model = {name: self._fingerprint.get(name) for name in sorted(of_model)}
        model["arithmetic"] = arithmetic(self._fingerprint.get("device", "auto"))
        keys = CacheKeys(json.dumps(model), max_model_len=max_model_len, engine_seed=config.seed)
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
        if self._stream is None and not self.journal.header:
            with suppress(OSError):
                self.journal.remove()


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
