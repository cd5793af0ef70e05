"""Answers a job's rows, with the model on this machine or on others."""

from __future__ import annotations

import time
from array import array
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Protocol

from pybatch.api.inputs import Encoded, Prompt
from pybatch.api.outcomes import Answer, Failure, Outcome, outcome_of
from pybatch.api.request_plan import RequestPlan
from pybatch.api.scoring import Scorer, planned
from pybatch.api.session import Receiver
from pybatch.api.settings import EngineSettings
from pybatch.engine import RequestOutput, SamplingParams
from pybatch.engine.config import EngineConfig
from pybatch.engine.errors import QueueFullError
from pybatch.engine.metrics import EngineMetrics, RequestMetrics
from pybatch.engine.pooling_params import Params
from pybatch.engine.standing import ORDINARY, Standing
from pybatch.jobs.answers.duplicates import InFlight
from pybatch.jobs.answers.job_answers import JobAnswers, number_of
from pybatch.jobs.dialect import RowRequest
from pybatch.jobs.job import Job
from pybatch.jobs.order.admission import AdmissionOrder, most_output
from pybatch.jobs.rows import Row, request_number
from pybatch.jobs.sources.read_ahead import ReadAhead
from pybatch.model.text.chat_template import dated
from pybatch.model.text.tokenizer import Tokenizer

WAIT = 0.05  # seconds between two checks of `stopped` while no row comes
START_WAIT = 1.0  # seconds in all for a file's first rows, from which to choose
MOST_AT_START, MOST_AT_ONCE = 2048, 256  # rows that are tokenised between two steps
RECENT = 256  # rows, whose share of new ones is expected of those to come
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

    @property
    def settings(self) -> EngineSettings: ...

    @property
    def scorer(self) -> Scorer: ...

    def encode(self, requests: Sequence[tuple[Prompt, Params]]) -> list[Encoded]: ...

    def add(
        self, prompt: Encoded, params: Params, receive: Receiver, *, index: int, standing: Standing = ORDINARY
    ) -> str: ...

    def step(self) -> None: ...

    def abort(self, request_id: str) -> None: ...


@dataclass(slots=True)
class RowAtWork:
    """A row that has not been saved. outcomes: of its plan's prompts; None of those that have none yet, as many as
    `missing`. key: of the answer, as Record's. cached, from_other_job: of all outcomes. begun: some of its prompts are
    running or have run. metrics: of those that have."""

    row: Row
    plan: RequestPlan
    outcomes: list[Outcome | None]
    missing: int
    standing: Standing
    key: int = 0
    cached: bool = True
    from_other_job: bool = True
    begun: bool = False
    metrics: list[RequestMetrics] = field(default_factory=list)


@dataclass(slots=True)
class Work:
    """A prompt that is ready for the engine. Its token ids are with the admission order while it waits, or with the
    equal one that it follows. number: among its row's. key: of its answer in the cache; None if no other request has
    that answer."""

    row: RowAtWork
    number: int
    prompt: Encoded
    params: Params
    key: bytes | None

    @property
    def size(self) -> int:
        """Its share of the row's."""
        return self.row.row.size // len(self.row.outcomes)


class RowRunner:
    """Runs the rows that a job has pending, and saves each as it finishes.

    answers: where answers are looked for first and kept; equal requests run once even so. stopped: checked between two
    steps; once it returns True no new rows run, and those that run may end within `grace` seconds.
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
        self._held: Work | None = None  # the next one, for which the engine has had no place
        self._running: dict[str, Work] = {}
        self._rows_at_work = 0
        self._rows_seen, self._new_share = 0, 0.0  # the share of the last rows that are like none before
        self._inbox: deque[RequestOutput] = deque()

    def run(self) -> bool:
        """Returns whether every row is done. Raises OSError, with the file's name, if rows cannot be read or results
        cannot be written, and whatever the engine's step raises. However it ends, every row that has finished is saved.
        """
        try:
            while not self._stopping():
                self._take_rows()
                self._admit()
                repeating = len(self._in_flight)
                at_work = max(0, self._rows_at_work - repeating)
                new = self._new_share if self._rows_seen else None
                self._job.progress.know(at_work=at_work, repeating=repeating, new=new)
                if self._running or self._held:
                    self._step()
                elif not self._waiting and self._rows.ended:
                    return True
            deadline = time.monotonic() + self._grace
            unfinished = self._give_up_rows_not_begun()
            while (self._running or self._held or self._waiting) and time.monotonic() < deadline:
                self._admit()
                if self._running or self._held:
                    self._step()
            unfinished |= bool(self._running or self._held or self._waiting)
            return not unfinished and self._rows.ended and self._job.failure is None
        finally:
            for request_id in self._running:
                self._session.abort(request_id)

    def _stopping(self) -> bool:
        return self._stopped() or self._job.failure is not None

    def _take_rows(self) -> None:
        """Those that there are. It waits only while the engine has nothing to do: for a stream's next row, or a moment
        for a good choice among a file's."""
        taken: list[tuple[Row, RequestPlan, Standing]] = []
        idle = not (self._running or self._held or self._waiting)
        most = MOST_AT_START if idle else MOST_AT_ONCE
        choose_until = time.monotonic() + START_WAIT if idle and self._job.source.rereadable else 0.0
        size = 0
        while len(taken) < most and size < MOST_BYTES_AT_ONCE and self._has_room and not self._stopping():
            row = self._rows.take(WAIT if idle and (not taken or time.monotonic() < choose_until) else 0)
            if row is None:
                if idle and not taken and not self._rows.ended:
                    continue
                break
            request = planned_row(self._job.request(row), self._session)
            if isinstance(request, Failure):
                self._job.save(row, request)
            else:
                taken.append((row, *request))
                size += row.size
        prompts = [(prompt, plan.params) for _, plan, _ in taken for prompt in plan.prompts]
        with dated(self._job.journal.header.get("started")):  # or answers would depend on when the job is gone on with
            encoded = iter(self._session.encode(prompts))
        for row, plan, standing in taken:
            self._take_row(row, plan, list(islice(encoded, len(plan.prompts))), standing)

    def _take_row(self, row: Row, plan: RequestPlan, prompts: Sequence[Encoded], standing: Standing) -> None:
        if failure := plan.failure([failure_of(prompt) for prompt in prompts]):
            self._job.save(row, failure)
            return
        at_work = RowAtWork(row, plan, [None] * len(prompts), len(prompts), standing)
        self._rows_at_work += 1
        new = False
        for number, prompt in enumerate(prompts):
            key = self._answers.key(prompt.token_ids, plan.params, request_number(row.index, number))
            if key is not None and len(prompts) == 1:
                at_work.key = number_of(key)
            work = Work(at_work, number, prompt, plan.params, key)
            if not (key is not None and self._find(key, work)):
                new |= self._queue(work)
        self._rows_seen = min(self._rows_seen + 1, RECENT)
        self._new_share += (new - self._new_share) / self._rows_seen

    @property
    def _has_room(self) -> bool:
        return self._waiting.has_room and self._in_flight.has_room

    def _find(self, key: bytes, work: Work) -> bool:
        """Whether the prompt has an answer that was there before."""
        found = self._answers.get(key)
        if found is not None:
            self._finish(work, found.answer, cached=True, from_other_job=found.from_other_job)
        return found is not None

    def _queue(self, work: Work) -> bool:
        """Whether the model is to answer it, and not an equal one."""
        ids, work.prompt.token_ids = work.prompt.token_ids, []
        leads = work.key is None or self._in_flight.join(work.key, work, work.size)
        if leads:
            self._push(work, ids)
        return leads

    def _push(self, work: Work, token_ids: list[int]) -> None:
        self._waiting.push(work, token_ids, most_output(work.params), work.size)

    def _give_up_rows_not_begun(self) -> bool:
        """Leaves those of which a part is done, or soon is. Returns whether there were others."""
        waiting = [self._waiting.pop() for _ in range(len(self._waiting))]
        if self._held is not None:
            waiting.append((self._held, array("q", self._held.prompt.token_ids)))
            self._held = None
        begun = [(work, ids) for work, ids in waiting if work.row.begun]
        for work, ids in begun:
            self._push(work, ids.tolist())
        return len(begun) < len(waiting)

    def _admit(self) -> None:
        while (self._held or self._waiting) and len(self._running) < self._session.capacity:
            if self._held is None:
                self._held, ids = self._waiting.pop()
                self._held.prompt.token_ids = ids.tolist()
            try:
                self._start(self._held)
            except QueueFullError:  # with requests of others
                break
            self._held = None
        self._save_finished()  # those that cannot be run have been received at once

    def _start(self, work: Work) -> None:
        number = request_number(work.row.row.index, work.number)
        request_id = self._session.add(
            work.prompt, work.params, self._inbox.append, index=number, standing=work.row.standing
        )
        self._running[request_id] = work
        work.row.begun = True

    def _step(self) -> None:
        try:
            self._session.step()
        except BaseException:
            for output in self._inbox:
                if output.error is None:  # not of those that the step has discarded
                    self._save(self._running[output.request_id], output)
            raise
        self._save_finished()

    def _save_finished(self) -> None:
        while self._inbox:
            output = self._inbox.popleft()
            self._save(self._running.pop(output.request_id), output)

    def _save(self, work: Work, output: RequestOutput) -> None:
        key, outcome = work.key, outcome_of(output, self._session.tokenizer)
        work.row.metrics.append(output.metrics)
        self._finish(work, outcome)
        if key is None:
            return
        if isinstance(outcome, Answer):
            self._answers.put(key, work.row.row.index, outcome)
            for follower in self._in_flight.answered(key):
                self._finish(follower, outcome, cached=True)
        elif (next_leader := self._in_flight.failed(key)) is not None:
            self._push(next_leader, work.prompt.token_ids)

    def _finish(self, work: Work, outcome: Outcome, *, cached: bool = False, from_other_job: bool = False) -> None:
        """Saves the row if this was its last prompt."""
        row = work.row
        row.outcomes[work.number] = outcome
        row.missing -= 1
        row.cached &= cached
        row.from_other_job &= from_other_job
        if row.missing:
            return
        self._rows_at_work -= 1
        answers = [each for each in row.outcomes if isinstance(each, Answer)]
        self._job.save(
            row.row,
            row.plan.failure(row.outcomes) or row.plan.answer(answers),
            key=row.key,
            cached=row.cached,
            from_other_job=row.from_other_job,
            metrics=row.metrics,
        )


def planned_row(
    request: tuple[RowRequest, Params] | Failure, session: RowSession
) -> tuple[RequestPlan, Standing] | Failure:
    """What runs for a row's request with the session's model, or why nothing can. request: as Job.request's."""
    if isinstance(request, Failure):
        return request
    asked, params = request
    plan = planned(asked.prompts, asked.pairs, params, session.scorer, session.tokenizer)
    return plan if isinstance(plan, Failure) else (plan, asked.standing)


def failure_of(prompt: Encoded) -> Failure | None:
    """Why a prompt cannot run, as far as its text tells."""
    return None if prompt.error is None else Failure(prompt.error, prompt.error_code or "invalid_request")
