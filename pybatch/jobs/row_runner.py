"""Answers a job's rows, with the model on this machine or on others."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from pybatch.api.inputs import Encoded, Prompt
from pybatch.api.outcomes import Answer, Failure, Outcome, outcome_of
from pybatch.api.session import Receiver
from pybatch.engine import RequestOutput, SamplingParams
from pybatch.engine.config import EngineConfig
from pybatch.engine.metrics import EngineMetrics
from pybatch.jobs.answers.duplicates import InFlight
from pybatch.jobs.answers.job_answers import JobAnswers, number_of
from pybatch.jobs.job import Job
from pybatch.jobs.order.admission import AdmissionOrder
from pybatch.jobs.rows import Row
from pybatch.jobs.sources.read_ahead import ReadAhead
from pybatch.model.text.tokenizer import Tokenizer

WAIT = 0.05  # seconds between two checks of `stopped` while no row comes
START_WAIT = 1.0  # seconds in all for a file's first rows, from which to choose
MOST_AT_START, MOST_AT_ONCE = 2048, 256  # rows that are tokenised between two steps
MOST_BYTES_AT_ONCE = 2 << 20  # of these rows: their token ids take a multiple of it


class RowSession(Protocol):
    """What a runner and a preview need of a Session, so that a cluster can take its place."""

    @property
    def capacity(self) -> int: ...

    @property
    def config(self) -> EngineConfig: ...

    @property
    def max_model_len(self) -> int: ...

    @property
    def default_params(self) -> SamplingParams: ...

    @property
    def arithmetic(self) -> str: ...

    @property
    def metrics(self) -> EngineMetrics: ...

    @property
    def tokenizer(self) -> Tokenizer | None: ...

    def encode(self, requests: Sequence[tuple[Prompt, SamplingParams]]) -> list[Encoded]: ...

    def add(self, prompt: Encoded, params: SamplingParams, receive: Receiver, *, index: int) -> str: ...

    def step(self) -> None: ...

    def abort(self, request_id: str) -> None: ...


@dataclass(slots=True)
class Work:
    """A row that is ready for the engine. Its token ids are with the admission order while it waits, or with the equal
    row that it follows. key: of its answer in the cache; None if no other request has that answer."""

    row: Row
    prompt: Encoded
    params: SamplingParams
    key: bytes | None


class RowRunner:
    """Runs the rows that a job has pending, and saves each as it finishes.

    answers: where a row's answer is looked for first and kept; equal rows run once even so. stopped: checked between
    two steps; once it returns True no new rows run, and those that run may end within `grace` seconds.
    """

    def __init__(
        self,
        session: RowSession,
        job: Job,
        rows: ReadAhead,
        answers: JobAnswers,
        stopped: Callable[[], bool] = lambda: False,
        grace: float = 0.0,
    ) -> None:
        self._session, self._job, self._rows, self._answers = session, job, rows, answers
        self._stopped, self._grace = stopped, grace
        self._waiting = AdmissionOrder[Work](block_size=session.config.block_size)
        self._in_flight = InFlight[Work]()
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
                at_work = len(self._running) + len(self._waiting)
                self._job.progress.know(at_work=at_work, repeating=len(self._in_flight))
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
        """Those that there are. It waits only while the engine has nothing to do: for a stream's next row, or a moment
        for a good choice among a file's."""
        taken: list[tuple[Row, Prompt, SamplingParams]] = []
        idle = not (self._running or self._waiting)
        most = MOST_AT_START if idle else MOST_AT_ONCE
        choose_until = time.monotonic() + START_WAIT if idle and self._job.source.rereadable else 0.0
        size = 0
        while len(taken) < most and size < MOST_BYTES_AT_ONCE and self._has_room and not self._stopping():
            row = self._rows.take(WAIT if idle and (not taken or time.monotonic() < choose_until) else 0)
            if row is None:
                if idle and not taken and not self._rows.ended:
                    continue
                break
            request = self._job.request(row)
            if isinstance(request, Failure):
                self._job.save(row, request)
            else:
                taken.append((row, *request))
                size += row.size
        encoded = self._session.encode([(prompt, params) for _, prompt, params in taken])
        for (row, _, params), prompt in zip(taken, encoded, strict=True):
            if prompt.error is not None:
                self._start(Work(row, prompt, params, None))
                continue
            key = self._answers.key(prompt.token_ids, params, row.index)
            if not (key is not None and self._find(key, row)):
                self._queue(Work(row, prompt, params, key))

    @property
    def _has_room(self) -> bool:
        return self._waiting.has_room and self._in_flight.has_room

    def _find(self, key: bytes, row: Row) -> bool:
        """Whether the row has an answer that was there before."""
        found = self._answers.get(key)
        if found is not None:
            self._job.save(row, found.answer, key=number_of(key), cached=True, from_other_job=found.from_other_job)
        return found is not None

    def _queue(self, work: Work) -> None:
        ids, work.prompt.token_ids = work.prompt.token_ids, []
        if work.key is None or self._in_flight.join(work.key, work, work.row.size):
            self._push(work, ids)

    def _push(self, work: Work, token_ids: list[int]) -> None:
        most = work.params.max_tokens
        output = None if most is None else most * work.params.n
        self._waiting.push(work, token_ids, output, work.row.size)

    def _admit(self) -> None:
        while self._waiting and len(self._running) < self._session.capacity:
            work, ids = self._waiting.pop()
            work.prompt.token_ids = ids.tolist()
            self._start(work)
        self._save_finished()  # those that cannot be run have been received at once

    def _start(self, work: Work) -> None:
        request_id = self._session.add(work.prompt, work.params, self._inbox.append, index=work.row.index)
        self._running[request_id] = work

    def _step(self) -> None:
        try:
            self._session.step()
        except BaseException:
            for output in self._inbox:
                if output.error is None:  # not of those that the step has discarded
                    self._save(self._running[output.request_id], self._outcome(output))
            raise
        self._save_finished()

    def _save_finished(self) -> None:
        while self._inbox:
            output = self._inbox.popleft()
            self._save(self._running.pop(output.request_id), self._outcome(output))

    def _outcome(self, output: RequestOutput) -> Outcome:
        return outcome_of(output, self._session.tokenizer)

    def _save(self, work: Work, outcome: Outcome) -> None:
        key = work.key
        self._job.save(work.row, outcome, key=0 if key is None else number_of(key))
        if key is None:
            return
        if isinstance(outcome, Answer):
            self._answers.put(key, work.row.index, outcome)
            for follower in self._in_flight.answered(key):
                self._job.save(follower.row, outcome, key=number_of(key), cached=True)
        elif (next_leader := self._in_flight.failed(key)) is not None:
            self._push(next_leader, work.prompt.token_ids)
