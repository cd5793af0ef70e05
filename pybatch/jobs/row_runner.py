"""Answers a job's rows with the model on this machine."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from pybatch.api.inputs import Encoded, Prompt
from pybatch.api.llm import LLM
from pybatch.api.outcomes import Failure, outcome_of
from pybatch.engine import RequestOutput, SamplingParams
from pybatch.jobs.job import Job
from pybatch.jobs.order import AdmissionOrder
from pybatch.jobs.read_ahead import ReadAhead
from pybatch.jobs.rows import Row

WAIT = 0.05  # seconds between two checks of `stopped` while no row comes
MOST_AT_START, MOST_AT_ONCE = 2048, 256  # rows that are tokenised between two steps


@dataclass(slots=True)
class Work:
    """A row that is ready for the engine. Its token ids are with the admission order while it waits."""

    row: Row
    prompt: Encoded
    params: SamplingParams


class RowRunner:
    """Runs the rows that a job has pending, and saves each as it finishes.

    stopped: checked between two steps; once it returns True no new rows run, and those that run may end within `grace`
    seconds.
    """

    def __init__(
        self, llm: LLM, job: Job, rows: ReadAhead, stopped: Callable[[], bool] = lambda: False, grace: float = 0.0
    ) -> None:
        self._session, self._job, self._rows = llm.session, job, rows
        self._stopped, self._grace = stopped, grace
        config = llm.engine.config
        self._room = 2 * config.max_num_seqs  # so that the batching policy has some to choose from
        self._waiting = AdmissionOrder[Work](block_size=config.block_size)
        self._running: dict[str, Work] = {}
        self._inbox: deque[RequestOutput] = deque()

    def run(self) -> bool:
        """Returns whether every row is done. Raises OSError, with the file's name, if rows cannot be read or results
        cannot be written, and whatever the engine's step raises. However it ends, every row that has finished is saved.
        """
        try:
            while not self._stopping():
                self._take_rows()
                self._admit()
                if self._running:
                    self._step()
                elif not self._waiting and self._rows.ended:
                    return True
            deadline = time.monotonic() + self._grace
            while self._running and time.monotonic() < deadline:
                self._step()
            return not (self._running or self._waiting) and self._rows.ended and self._job.failure is None
        finally:
            for request_id in self._running:
                self._session.abort(request_id)

    def _stopping(self) -> bool:
        return self._stopped() or self._job.failure is not None

    def _take_rows(self) -> None:
        """Those that there are. It waits only while the engine has nothing to do: for a stream's next row, or for a
        good choice among a file's."""
        taken: list[tuple[Row, Prompt, SamplingParams]] = []
        idle = not (self._running or self._waiting)
        while len(taken) < (MOST_AT_START if idle else MOST_AT_ONCE) and self._waiting.has_room:
            row = self._rows.take(WAIT if idle and (not taken or self._job.source.rereadable) else 0)
            if row is None:
                if idle and not taken and not self._rows.ended and not self._stopping():
                    continue
                break
            request = self._job.request(row)
            if isinstance(request, Failure):
                self._job.save(row, request)
            else:
                taken.append((row, *request))
        encoded = self._session.encode([(prompt, params) for _, prompt, params in taken])
        for (row, _, params), prompt in zip(taken, encoded, strict=True):
            if prompt.error is not None:
                self._job.save(row, Failure(prompt.error))
                continue
            ids, prompt.token_ids = prompt.token_ids, []
            self._waiting.push(Work(row, prompt, params), ids, params.max_tokens, row.size)

    def _admit(self) -> None:
        while self._waiting and len(self._running) < self._room:
            work, ids = self._waiting.pop()
            work.prompt.token_ids = ids.tolist()
            request_id = self._session.add(work.prompt, work.params, self._inbox.append, index=work.row.index)
            self._running[request_id] = work
        self._save_finished()  # those that cannot be run have been received at once

    def _step(self) -> None:
        try:
            self._session.step()
        except BaseException:
            for output in self._inbox:
                if output.error is None:  # not of those that the step has discarded
                    self._job.save(self._running[output.request_id].row, outcome_of(output))
            raise
        self._save_finished()

    def _save_finished(self) -> None:
        while self._inbox:
            output = self._inbox.popleft()
            self._job.save(self._running.pop(output.request_id).row, outcome_of(output))
