"""A job before its model is loaded: what it reads, where its results go, and whether it goes on with an earlier run."""

from __future__ import annotations

import json
import logging
import os
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self

import pybatch
from pybatch.jobs.answers.cache_keys import CacheKeys
from pybatch.jobs.answers.job_answers import JobAnswers
from pybatch.jobs.checked_rows import CheckedRows, for_model
from pybatch.jobs.disk.line_file import LineFile
from pybatch.jobs.disk.publishing import changed_at
from pybatch.jobs.fingerprint import (
    Fingerprint,
    argument_fingerprint,
    content_digest,
    differences,
    model_fingerprint,
    sampling_fingerprint,
)
from pybatch.jobs.job import Job
from pybatch.jobs.journal import Journal, JournalMismatchError, digest_of_rows
from pybatch.jobs.results.destination import Destination
from pybatch.jobs.results.results import Results

if TYPE_CHECKING:
    from pybatch.api.progress import BatchProgress
    from pybatch.engine import SamplingParams
    from pybatch.jobs.row_runner import RowSession
    from pybatch.jobs.rows import Row
    from pybatch.model.text.tokenizer import Tokenizer

logger = logging.getLogger(__name__)

OnError = Literal["skip", "fail"]
ANSWERS_DEPEND_ON = (
    "tokenizer",
    "dtype",
    "quantization",
    "adapter",
    "lora_modules",
    "lora_dtype",
    "kv_cache_dtype",
    "max_model_len",
    "device",
    "seed",
    "generation_config",
)

_unused: set[Journal] = set()  # created for jobs that have not begun


class OtherJobError(ValueError):
    """A journal of a job with other answers is there. differences: name, earlier and present value of each."""

    def __init__(self, journal: str, differences: list[tuple[str, str, str]]) -> None:
        super().__init__(f"{journal} is of another job; --fresh starts over")
        self.differences = differences


class OtherArithmeticError(OtherJobError):
    """A job was begun where sums have other bits, so that its answers would depend on where it was cut."""

    def __init__(self, journal: str, begun: str, now: str) -> None:
        ValueError.__init__(
            self,
            f"{journal} was begun with the arithmetic of {begun}, and {now} gives other bits: go on where it was begun "
            "(PYBATCH_ISA forces an instruction set), or --fresh starts over",
        )
        self.differences = [("arithmetic", begun, now)]


def prepare(
    rows: CheckedRows,
    destination: Destination,
    *,
    model: str | Path,
    engine: Mapping[str, Any],
    sampling: Mapping[str, Any],
    stream: LineFile | None = None,
    keep_records: bool = False,
    as_begun: bool = False,
) -> Preparation:
    """Opens the job's journal. engine, sampling: the arguments that were given. stream, keep_records, as_begun: as
    Preparation's.

    Raises ValueError for what is wrong with the job as a whole (OtherJobError, ModelError), OSError for files.
    """
    from pybatch.model.checkpoints.find import find_model

    fingerprint: Fingerprint = {
        "model": model_fingerprint(find_model(model)),
        **{
            name: argument_fingerprint(name, engine[name]) for name in ANSWERS_DEPEND_ON if engine.get(name) is not None
        },
        **{name: sampling_fingerprint(name, value) for name, value in sampling.items()},
        **rows.options.fingerprint(),
        "format": rows.dialect.name,
        **({"unordered": True} if destination.unordered else {}),
        "input": rows.source.digest(),
    }
    return Preparation(rows, destination, fingerprint, stream, keep_records=keep_records, as_begun=as_begun)


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
        as_begun: bool = False,
    ) -> None:
        """stream: of the destination, if it is one (open_stream), which is closed too. keep_records: the journal of a
        finished job keeps what the output has too. as_begun: a job that was begun with something else is this one all
        the same: for a caller who answers no further rows.

        Raises OtherJobError, FileExistsError for files that are not this job's, and OSError."""
        self.source, self.dialect, self.checked = rows.source, rows.dialect, rows.checked
        self.destination, self._fingerprint, self._stream = destination, fingerprint, stream
        self._as_begun = as_begun
        self._results: Results | None = None
        self._progress: BatchProgress | None = None
        self.journal = self._open_journal() if self.resumable else temporary_journal()
        try:
            destination.expect_free(self.journal, stream)
            self.journal.keeps_records = keep_records
            if self.finished:
                self._expect_same_stream()
                self.journal.shrink()  # if a kill has prevented it
        except BaseException:
            self.close()
            raise

    def _open_journal(self) -> Journal:
        with signals_held():  # or one could come before it is known that the journal is to be removed
            journal = Journal.open(self.destination.journal)
            if not journal.header:
                _unused.add(journal)
        earlier = journal.header.get("fingerprint")
        same = self.destination.fresh or self._as_begun or earlier == self._fingerprint
        if earlier is not None and not same:
            journal.close()
            raise OtherJobError(journal.name, differences(earlier, self._fingerprint))
        return journal

    def _expect_same_stream(self) -> None:
        """Raises JournalMismatchError if the rows of a stream are not those that the finished job has answered."""
        content = self.journal.notes.get("content")
        rows = () if self.source.rereadable else self.source.rows()
        if content is not None and content != digest_of_rows(content_digest(row.fields) for row in rows):
            raise JournalMismatchError(
                f"{self.source.name}: not the rows that {self.destination.output} has answers of; --fresh starts over"
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    @property
    def finished(self) -> bool:
        """Whether an earlier run has answered every row, and its results are where it put them."""
        again = self.destination.fresh or (self.destination.retry_errors and self.journal.failed)
        return bool(not again and self.journal.notes.get("finished") and self.destination.has_results(self.journal))

    def has_done(self, row: Row) -> bool:
        """Whether an earlier run has done a row that this one need not."""
        again = self.destination.retry_errors and self.journal.has_failed(row.index)
        return row.index in self.journal and not (again or self.destination.fresh)

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

    def progress(
        self, session: RowSession, params: SamplingParams, now: Callable[[], float] = time.perf_counter
    ) -> BatchProgress:
        """Of a job that has not begun. now: a clock, in seconds."""
        from pybatch.api.progress import BatchProgress

        checked = self.checked
        rows, size = (checked.rows, checked.size) if self.source.rereadable else (None, None)
        prompts = checked.prompts / max(1, checked.rows - checked.bad.total()) if self.source.rereadable else 1
        return BatchProgress(session.metrics, rows, size, params.max_tokens, params.n * max(1, prompts), now)

    def start(
        self,
        tokenizer: Tokenizer | None,
        params: SamplingParams,
        progress: BatchProgress,
        *,
        arithmetic: str,
        on_error: OnError = "skip",
    ) -> Job:
        """To be called once the model is loaded: until then nothing of an earlier run is touched. arithmetic: the
        session's.

        Raises ValueError if the rows need what the model has not (OtherArithmeticError if the job was begun with
        another arithmetic), OSError, and FileExistsError.
        """
        journal, to = self.journal, self.destination
        dialect = for_model(self.dialect, tokenizer)
        if to.fresh or not journal.header or (journal.notes.get("finished") and not journal.done):
            replaces = [changed_at(path) for path in (to.output, to.errors) if path] if to.fresh else []
            _unused.discard(journal)
            journal.begin(
                {
                    "pybatch": pybatch.__version__,
                    "started": time.time(),
                    "fingerprint": self._fingerprint,
                    "arithmetic": arithmetic,
                    "replaces": replaces,
                }
            )
        elif (begun := journal.header.get("arithmetic", arithmetic)) != arithmetic and not self._as_begun:
            raise OtherArithmeticError(journal.name, begun, arithmetic)
        elif (version := journal.header.get("pybatch")) != pybatch.__version__ and not self._as_begun:
            logger.warning(
                "%s was begun with pybatch %s and goes on with %s: its answers may have other bits from here on",
                *(journal.name, version, pybatch.__version__),
            )
        if to.retry_errors and journal.failed:
            progress.rows_retried = journal.failed
            journal.forget_failed()
        self._results = to.open(journal, self.source, dialect, self._stream)
        self._results.begin()
        self._progress = progress
        return Job(
            self.source,
            dialect,
            params,
            journal,
            self._results,
            progress,
            checked=self.checked,
            fail_fast=on_error == "fail",
            with_fields=not to.joins(self.source, dialect, self._stream),
        )

    def answers(self, session: RowSession, folder: Path | None) -> JobAnswers:
        """session: that is to run the job. folder: of answers that other jobs may use too. Once the job is started."""
        of_model = {"model", *ANSWERS_DEPEND_ON} - {"max_model_len", "seed"}  # which the keys have as they take effect
        model = {name: self._fingerprint.get(name) for name in sorted(of_model)}
        model |= {"arithmetic": session.arithmetic, "pybatch": pybatch.__version__}
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
        discard_if_unused(self.journal)
        self.journal.close()


def discard_unused_journals() -> None:
    """Removes those that were created for jobs which have not begun. May be called by a signal's handler."""
    for journal in list(_unused):
        discard_if_unused(journal)


def discard_if_unused(journal: Journal) -> None:
    with suppress(KeyError, OSError):
        _unused.remove(journal)  # raises KeyError if it has begun
        journal.remove()


@contextmanager
def signals_held() -> Iterator[None]:
    """Delays handlers to the end of the block. (To block the signals would not: another thread gets them then, and the
    handler runs on this one all the same.) Off the main thread, where no handlers run, there is nothing to do."""
    on_main_thread = threading.current_thread() is threading.main_thread()
    ending = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP) if on_main_thread else ()
    handlers = {signum: handler for signum in ending if callable(handler := signal.getsignal(signum))}
    held: list[int] = []
    try:
        for signum in handlers:
            signal.signal(signum, lambda signum, frame: held.append(signum))
        yield
    finally:
        for signum, handler in handlers.items():
            signal.signal(signum, handler)
        for came in held:
            signal.raise_signal(came)


def temporary_journal() -> Journal:
    fd, path = tempfile.mkstemp(prefix="pybatch-")
    os.unlink(path)
    return Journal(LineFile("a temporary file", fd))
