"""One batch at work, as a job on the server's engine."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from pybatch.api.async_llm import AsyncLLM
from pybatch.api.outcomes import Failure
from pybatch.api.protocols.sampling import merged
from pybatch.api.shared_session import InFlight, SharedSession
from pybatch.jobs.dialects.openai_batch import CANCELLED, EXPIRED
from pybatch.jobs.job import Job
from pybatch.jobs.journal import Journal
from pybatch.jobs.preparation import Preparation, prepare
from pybatch.jobs.results.destination import Destination
from pybatch.jobs.row_runner import RowRunner
from pybatch.jobs.sources.read_ahead import ReadAhead
from pybatch.serve.batches.mapping import output_format
from pybatch.serve.batches.rows import fault, mapping_of, params_of, read_rows
from pybatch.serve.store import Batch, Storage, StoredFile
from pybatch.serve.store.batches import UNDER_WAY, Ending, Status
from pybatch.serve.store.files import new_file_id

ATTEMPTS = 3  # without a row done, of which each is ended by a step of the engine that fails
NOT_RUN: dict[Ending, Failure] = {
    "cancelled": Failure("not run: the batch was cancelled", CANCELLED),
    "expired": Failure("not run: the batch's completion window ended before", EXPIRED),
}


class BatchRun:
    """The job of a batch that has been checked.

    Whatever ends the process, another BatchRun of the batch goes on: the journal has the rows that are done, and the
    database how far the batch is. Each stage may be repeated.

    served: the model's names. in_flight: bounds its requests together with those of other runs. journal: while rows
    run. cancelled, parked: may be set from another thread; no further rows run then.
    """

    def __init__(
        self, batch: Batch, storage: Storage, llm: AsyncLLM, served: tuple[str, ...], in_flight: InFlight
    ) -> None:
        self.batch, self._storage, self._batches = batch, storage, storage.batches
        self._llm, self._served, self._in_flight = llm, served, in_flight
        self.journal: Journal | None = None
        self.cancelled, self.parked = batch.status == "cancelling", False
        self._output = self._batches.output(batch.id, f".{output_format(mapping_of(batch), batch.filename)}")
        self._errors = self._batches.errors(batch.id)

    @property
    def ending(self) -> Ending | None:
        """Why no further rows are to run, if the batch is to end without them."""
        return "cancelled" if self.cancelled else "expired" if time.time() >= self.batch.expires_at else None

    def answer(self) -> None:
        """Returns when the batch has ended or is parked. Raises OSError where the disk does not go on, RuntimeError
        where the engine does not, OtherJobError if it was begun with another model."""
        sampling, engine = params_of(self.batch), vars(self._llm.engine.config)
        with prepare(
            read_rows(self.batch, self._batches.input(self.batch.id), self._served, self._llm),
            Destination(str(self._output), str(self._errors)),
            model=engine["model"],
            engine=engine,
            sampling=sampling,
            as_begun=self.batch.ending is not None or self.ending is not None,
        ) as prepared:
            if not prepared.finished and not self._run(prepared):
                return
        self._end()

    def fail(self, error: Exception) -> None:
        """Ends the batch, with what has been done, because of something else than its rows."""
        reason = f"{error.strerror}" if isinstance(error, OSError) and error.strerror else str(error)
        message = f"the batch could not go on: {reason}"
        self._move("failed", errors=[fault("server_error", message)])

    def clear(self) -> None:
        """Removes what a batch that has ended no longer needs."""
        for left in (self._batches.input(self.batch.id), Path(f"{self._output}.journal")):
            left.unlink(missing_ok=True)

    def _run(self, prepared: Preparation) -> bool:
        """Returns False if it is parked."""
        session = self._llm.session
        params = merged(session.default_params, params_of(self.batch))
        progress = prepared.progress(session, params)
        job = prepared.start(session.tokenizer, params, progress, arithmetic=session.arithmetic)
        ending = self.batch.ending
        try:
            if ending is None:
                self.journal = job.journal
                finished = self._run_rows(prepared, job)
                ending = None if finished else self.ending
                self._note(job.journal, ending)
                if not finished and ending is None:
                    return False
        except BaseException:
            self._note(job.journal, None)
            prepared.publish_what_there_is()
            raise
        finally:
            self.journal = None
        if ending is not None:
            job.fail_rest(NOT_RUN[ending])
            self._batches.update(self.batch.id, total=job.journal.done)
        self._batches.move(self.batch.id, ["in_progress"], "finalizing")
        job.results.publish(finished=True)
        return True

    def _run_rows(self, prepared: Preparation, job: Job) -> bool:
        """Whether every row is done. A step of the engine that fails may be another request's fault: the rows that it
        has discarded run again."""
        attempts = 0
        while True:
            done = job.journal.done
            try:
                with (
                    # No row may take another's share by naming it: each batch has one of its own.
                    SharedSession(self._llm.thread, self._in_flight, user=self.batch.id) as session,
                    prepared.answers(session, None) as answers,
                    ReadAhead(job.pending(), self.batch.filename) as ahead,
                ):
                    return RowRunner(session, job, ahead, answers, self._stopped).run()
            except RuntimeError:
                self._llm.thread.expect_running()
                attempts = 1 if job.journal.done > done else attempts + 1
                if attempts == ATTEMPTS:
                    raise

    def _stopped(self) -> bool:
        return self.parked or self.ending is not None

    def _note(self, journal: Journal, ending: Ending | None) -> None:
        """Writes down what has been done, before rows that have not run are counted too."""
        input_tokens = output_tokens = 0
        for record in journal:
            input_tokens += record.prompt_tokens
            output_tokens += record.output_tokens
        self._batches.update(
            self.batch.id,
            completed=journal.done - journal.failed,
            failed=journal.failed,
            input_tokens=input_tokens,
            output_tokens=output_tokens,
            ending=ending,
        )

    def _end(self) -> None:
        now = self._batches.get(self.batch.id)
        assert now is not None
        self._move(now.ending or ("cancelled" if now.status == "cancelling" else "completed"))

    def _move(self, status: Status, **values: Any) -> None:
        """To its last status, with the files that it has written."""
        output, errors = self._file(self._output, "output"), self._file(self._errors, "error")
        self._batches.move(
            self.batch.id,
            UNDER_WAY,
            status,
            [file for file in (output, errors) if file is not None and self.batch.door == "openai"],
            output_file_id=None if output is None else output.id,
            error_file_id=None if errors is None else errors.id,
            **values,
        )

    def _file(self, path: Path, what: str) -> StoredFile | None:
        """None for one that is not there, or has nothing in it."""
        size = path.stat().st_size if path.exists() else 0
        if not size:
            return None
        created, kept = int(time.time()), self.batch.output_seconds
        name = f"{self.batch.id}_{what}{path.suffix}"
        expires_at = None if kept is None else created + kept
        inside = str(path.relative_to(self._storage.folder))
        return StoredFile(new_file_id(), "batch_output", name, size, created, expires_at, inside)
