"""Rows of jobs on an engine that answers interactive requests too."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from queue import Empty, SimpleQueue
from types import TracebackType
from typing import Self

from pybatch.api.engine_thread import TOKENIZE_AT_ONCE, EngineThread
from pybatch.api.inputs import Encoded, Prompt
from pybatch.api.scoring import Scorer
from pybatch.api.session import Receiver
from pybatch.api.settings import EngineSettings
from pybatch.api.submission import Submission
from pybatch.engine import RequestOutput, SamplingParams
from pybatch.engine.config import EngineConfig
from pybatch.engine.metrics import EngineMetrics
from pybatch.engine.pooling_params import Params
from pybatch.engine.standing import BACKGROUND, ORDINARY, Standing
from pybatch.model.text.tokenizer import Tokenizer

WAIT = 0.05  # seconds that a step waits for outputs, so that its caller sees signals and new rows meanwhile


class InFlight:
    """Bounds how many requests some sessions have in an engine together. limit may be changed at any time.

    Each session may have an equal share of the limit, and what the others leave of theirs. When one opens while others
    have it all, they together exceed the limit until enough of the others' requests have ended.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._sessions: list[SharedSession] = []

    @property
    def requests(self) -> int:
        """How many there are."""
        return sum(session.in_flight for session in self._sessions.copy())

    def open(self, session: SharedSession) -> None:
        self._sessions.append(session)

    def close(self, session: SharedSession) -> None:
        self._sessions.remove(session)

    def capacity(self, session: SharedSession) -> int:
        """The most that the session may have now; at least one."""
        share = self.limit // max(1, len(self._sessions))
        return max(1, share, session.in_flight + self.limit - self.requests)


class SharedSession:
    """A Session's place taken by an engine that runs on a thread of its own, for one thread that has rows to answer.

    Its requests have the priority BACKGROUND: they get what interactive ones leave. Close it, or use it as a context
    manager: then requests that have not finished are aborted.

    in_flight: bounds its requests together with those of other sessions; None: a bound of its own, of twice
    max_num_seqs as a Session's is. user: of all its requests, whatever they say; None: whom each says.
    """

    def __init__(self, thread: EngineThread, in_flight: InFlight | None = None, *, user: str | None = None) -> None:
        self._thread, self._session, self._user = thread, thread.session, user
        self._inbox: SimpleQueue[RequestOutput | Exception] = SimpleQueue()
        self._requests: dict[str, tuple[Submission, Receiver]] = {}
        self._bound = in_flight or InFlight(self._session.capacity)
        self._bound.open(self)

    @property
    def in_flight(self) -> int:
        return len(self._requests)

    @property
    def capacity(self) -> int:
        return self._bound.capacity(self)

    @property
    def config(self) -> EngineConfig:
        return self._session.config

    @property
    def max_model_len(self) -> int:
        return self._session.max_model_len

    @property
    def default_params(self) -> SamplingParams:
        return self._session.default_params

    @property
    def arithmetic(self) -> str:
        return self._session.arithmetic

    @property
    def settings(self) -> EngineSettings:
        return self._session.settings

    @property
    def scorer(self) -> Scorer:
        return self._session.scorer

    @property
    def metrics(self) -> EngineMetrics:
        """The engine's, of interactive requests too."""
        return self._session.metrics

    @property
    def tokenizer(self) -> Tokenizer | None:
        return self._session.tokenizer

    def encode(self, requests: Sequence[tuple[Prompt, Params]]) -> list[Encoded]:
        """As Session's, a few at a time: an interactive prompt waits for those that the tokenizer has."""
        encoded: list[Encoded] = []
        for start in range(0, len(requests), TOKENIZE_AT_ONCE):
            encoded += self._session.encode(requests[start : start + TOKENIZE_AT_ONCE])
            self._thread.let_run()
        return encoded

    def add(
        self,
        prompt: Encoded,
        params: Params,
        receive: Receiver,
        *,
        index: int,
        standing: Standing = ORDINARY,
    ) -> str:
        """As Session's, but nothing is received before the next step. Raises RuntimeError if the engine's thread has
        ended."""
        standing = replace(standing, priority=BACKGROUND, user=self._user or standing.user)
        submission = self._thread.add(prompt, params, self, standing, index=index)
        self._requests[submission.request_id] = submission, receive
        return submission.request_id

    def step(self) -> None:
        """Hands outputs to their receivers, on this thread; waits a little for some. Raises RuntimeError, after these,
        if a step of the engine has failed and discarded requests, or if the engine's thread has ended."""
        fault: Exception | None = None
        for item in self._items():
            if isinstance(item, Exception):
                fault = item
            elif (found := self._requests.pop(item.request_id, None)) is not None:  # None: aborted meanwhile
                found[1](item)
        if fault is not None:
            raise fault

    def _items(self) -> Iterator[RequestOutput | Exception]:
        try:
            yield self._inbox.get(timeout=WAIT)
            while True:
                yield self._inbox.get_nowait()
        except Empty:
            return

    def put(self, item: RequestOutput | Exception) -> bool:
        """On the engine's thread, for `step` to take."""
        fault = self._session.fault
        if fault is not None:
            item = RuntimeError(f"a step of the engine has failed and discarded the requests of this job: {fault!r}")
            item.__cause__ = fault
        self._inbox.put(item)
        return True

    def abort(self, request_id: str) -> None:
        """As Session's."""
        found = self._requests.pop(request_id, None)
        if found is not None:
            self._thread.leave(found[0])

    def close(self) -> None:
        for request_id in list(self._requests):
            self.abort(request_id)
        self._bound.close(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()
