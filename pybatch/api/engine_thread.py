"""An engine on a thread of its own, beside one that tokenises."""

from __future__ import annotations

import gc
import itertools
import logging
import os
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any, TypeVar, cast

from pybatch.api.inputs import Encoded, Prompt
from pybatch.api.prompt_queue import PromptQueue
from pybatch.api.session import Session
from pybatch.api.submission import Outbox, Submission
from pybatch.engine import RequestOutput
from pybatch.engine.metrics import RequestMetrics
from pybatch.engine.pooling_params import Params
from pybatch.engine.standing import ORDINARY, Standing

logger = logging.getLogger(__name__)

T = TypeVar("T")

TOKENIZE_AT_ONCE = 16  # prompts
TOKENIZE_CHARACTERS = 1 << 16  # after which no further prompt joins those that are tokenised at once
INTAKE_SECONDS = 0.002  # the most that new requests may take between two steps of the running ones
YIELD_EVERY, YIELD_SECONDS = 0.001, 0.0001  # how often a busy submitter lets the engine's thread have the GIL


class EngineThread:
    """Runs a session's engine until it is closed. Every method may be called on any thread.

    Prompts go through two queues: the tokenising thread takes them in batches and in the order of a PromptQueue, as far
    as the engine has places for their user, and hands them to the engine's, which spends a bounded time on them between
    two steps. Encoded prompts go past both, to a queue of their own that has what is left of that time.
    """

    def __init__(self, session: Session) -> None:
        self.session = session
        # Of a kind as many as the policy can choose from; more would only be tokenised earlier, and walked by the
        # collector.
        self._prompts = PromptQueue[Submission](session.capacity, session.config.weights)
        self._commands: SimpleQueue[Callable[[], object] | None] = SimpleQueue()
        self._encoded: deque[tuple[Submission, Encoded]] = deque()
        self._between = threading.Semaphore(session.capacity)  # the two threads: later ones would wait for more
        self._calls: set[Future[Any]] = set()
        self._lock = threading.Lock()  # over the four below, and which submissions are cancelled
        self._numbers = itertools.count()
        self._open: dict[str, Submission] = {}
        self._num_bounded = 0  # of these
        self._ended: RuntimeError | None = None
        self._closing = False
        self._progress = 0.0  # when the engine's thread last began a step, or a submitter yielded to it
        # A full garbage collection walks everything imported and loaded: 0.3 s in which no Python runs. Exclude it.
        gc.collect()
        gc.freeze()
        self._pid = os.getpid()
        self._threads = [
            threading.Thread(target=self._tokenize, name="pybatch-tokenizer", daemon=True),
            threading.Thread(target=self._run, name="pybatch-engine", daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    def submit(
        self,
        prompt: Prompt,
        params: Params,
        request_id: str | None,
        outbox: Outbox,
        standing: Standing = ORDINARY,
    ) -> Submission:
        """Queues a request whose outputs, as it grows, go to the outbox. request_id: None for a number.

        Raises QueueFullError if too many others wait, ValueError if the id is in use, RuntimeError if the engine's
        thread has ended.
        """
        submission = self._open_one(params, request_id, outbox, standing, prompt=prompt)
        self._prompts.put(submission)
        self.let_run()
        return submission

    def add(
        self,
        prompt: Encoded,
        params: Params,
        outbox: Outbox,
        standing: Standing,
        *,
        index: int | None = None,
    ) -> Submission:
        """Hands over background work, which takes none of the places of what `submit` queues: its caller bounds it. Its
        whole output goes to the outbox, or the exception of the failed step that has discarded it.

        index: as Session.add's. Raises RuntimeError if the engine's thread has ended.
        """
        submission = self._open_one(params, None, outbox, standing, index=index)
        self._encoded.append((submission, prompt))
        self._commands.put(_nothing)  # wakes the engine's thread up
        self.let_run()
        return submission

    def _open_one(
        self,
        params: Params,
        request_id: str | None,
        outbox: Outbox,
        standing: Standing,
        *,
        prompt: Prompt | None = None,
        index: int | None = None,
    ) -> Submission:
        with self._lock:
            self.expect_running()
            if not standing.background:
                self.session.config.expect_place(self._num_bounded)
            if request_id is None:
                request_id = next(name for number in self._numbers if (name := str(number)) not in self._open)
            elif request_id in self._open:
                raise ValueError(f"request_id: {request_id!r} is in use by a request that has not finished")
            submission = Submission(params, request_id, outbox, standing, prompt=prompt, index=index)
            self._open[request_id] = submission
            self._num_bounded += not standing.background
        return submission

    def leave(self, submission: Submission) -> None:
        """Aborts the request unless it has finished; its outputs are no longer wanted."""
        self._end(submission, then=partial(self._drop, submission))

    def abort(self, request_id: str) -> None:
        """Aborts the request of that id. Its last output has what came before, with finish_reason "abort"."""
        submission = self._open.get(request_id)
        if submission is not None:
            self._end(submission, then=partial(self._drop, submission, tell=True))

    def call(self, function: Callable[[], T]) -> Future[T]:
        """Runs a function between two steps, on the thread that makes them. Raises RuntimeError if that has ended; it
        is cancelled if that ends before."""
        future: Future[T] = Future()

        def run() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                future.set_result(function())
            except Exception as error:
                future.set_exception(error)

        with self._lock:
            self.expect_running()
            self._calls.add(future)
            self._commands.put(run)
        future.add_done_callback(self._calls.discard)
        return future

    def expect_result(self) -> Future[Any]:
        """A future that a step is to set; it is cancelled if the thread ends before. Raises as `call`."""
        future: Future[Any] = Future()
        with self._lock:
            self.expect_running()
            self._calls.add(future)
        future.add_done_callback(self._calls.discard)
        return future

    def close(self) -> None:
        """Ends both threads after the step under way. Outboxes of unfinished requests get a RuntimeError."""
        self._closing = True
        self._prompts.close()  # wakes them up
        self._between.release()
        self._commands.put(None)
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join()
        gc.unfreeze()

    @property
    def num_waiting(self) -> int:
        """Requests that do not run yet, wherever they wait, and samples that were preempted."""
        engine = self.session.engine
        return max(0, len(self._open) - engine.num_unfinished()) + engine.num_waiting

    def metrics_of(self, request_id: str) -> RequestMetrics | None:
        """Of an unfinished request, as far as it has come; None while it waits outside the engine."""
        submission = self._open.get(request_id)
        if submission is None or submission.engine_id is None:
            return None
        return self.session.engine.metrics_of(submission.engine_id)

    def open_priorities(self) -> Counter[int]:
        """How many unfinished requests there are of each priority."""
        with self._lock:
            return Counter([submission.standing.priority for submission in self._open.values()])

    def expect_place(self, more: int) -> None:
        """Raises QueueFullError unless `submit` may take so many more."""
        self.session.config.expect_place(self._num_bounded, more)

    def let_run(self) -> None:
        """Gives the engine's thread a chance to run. A busy event loop releases the GIL at each turn and has it back
        before a waiting thread is awake, and that thread's claim begins anew each time (CPython's take_gil)."""
        now = time.perf_counter()
        if now - self._progress > YIELD_EVERY and not self.session.idle:
            self._progress = now
            time.sleep(YIELD_SECONDS)

    def expect_running(self) -> None:
        if os.getpid() != self._pid:
            raise RuntimeError(
                "this AsyncLLM was made before a fork, and its engine runs in the parent process only: make one in "
                "the process that uses it, or start that with multiprocessing's 'spawn'"
            )
        if self._ended is not None:
            raise self._ended

    def _end(self, submission: Submission, *, then: Callable[[], object] | None = None) -> None:
        """Closes a submission, unless it is: another may have its id since. then: a command, which the engine's thread
        has before those of whoever takes its place, so that the engine never has more than it may."""
        with self._lock:
            if self._open.get(submission.request_id) is not submission:
                return
            del self._open[submission.request_id]
            submission.cancelled = True
            self._num_bounded -= not submission.standing.background
            self._prompts.withdraw(submission)
            if then is not None:
                self._commands.put(then)

    # ---- on the tokenising thread ----

    def _tokenize(self) -> None:
        while self._between.acquire() and (first := self._prompts.take()) is not None and not self._closing:
            taken, characters = [first], first.size
            while len(taken) < TOKENIZE_AT_ONCE and characters < TOKENIZE_CHARACTERS:
                if not self._between.acquire(blocking=False):
                    break
                following = self._prompts.take(wait=False)
                if following is None:
                    self._between.release()
                    break
                taken.append(following)
                characters += following.size
            encoded = self.session.encode([(cast(Prompt, each.prompt), each.params) for each in taken])
            for submission, each in zip(taken, encoded, strict=True):
                submission.prompt = None
                self._commands.put(partial(self._add_tokenised, submission, each))

    # ---- on the engine's thread ----

    def _run(self) -> None:
        ended = RuntimeError("this AsyncLLM is closed")
        try:
            while self._take_commands():
                self._progress = time.perf_counter()
                try:
                    self.session.step()
                except BaseException:  # its requests have come out with an error; those to come have a sound engine
                    logger.exception("a step of the engine failed")
        except BaseException as error:
            ended = RuntimeError(f"the engine's thread has ended: {type(error).__name__}: {error}")
            logger.exception("the engine's thread has ended")
        finally:
            with self._lock:
                self._ended = ended
                waiting, self._open, self._num_bounded = self._open, {}, 0
                for submission in waiting.values():
                    submission.cancelled = True
            for call in self._calls.copy():
                call.cancel()
            for submission in waiting.values():  # all, before what may fail again
                submission.outbox.put(ended)
            for submission in waiting.values():
                self._drop(submission)
            while not self._commands.empty():  # those that drop what was left before, and none that adds
                if (command := self._commands.get()) is not None:
                    command()

    def _take_commands(self) -> bool:
        """Runs commands, then adds encoded prompts, for INTAKE_SECONDS at most while requests are running; waits for
        one if none are. Returns False if the thread is to end."""
        start = None
        while not self._closing:
            idle = self.session.idle and not self._encoded
            if not idle and start is not None and time.perf_counter() - start > INTAKE_SECONDS:
                return True
            try:
                command = self._commands.get(block=idle)
            except Empty:
                if not self._encoded:
                    return True
                command = self._add_encoded
            if command is None:
                break
            start = start or time.perf_counter()
            command()
        return False

    def _add_encoded(self) -> None:
        self._add(*self._encoded.popleft(), stream=False)

    def _add_tokenised(self, submission: Submission, encoded: Encoded) -> None:
        self._between.release()
        self._add(submission, encoded, stream=True)

    def _add(self, submission: Submission, encoded: Encoded, *, stream: bool) -> None:
        if submission.cancelled:
            self._prompts.leave(submission)  # it may have been put there after it was dropped
            return
        submission.engine_id = self.session.add(
            encoded,
            submission.params,
            partial(self._deliver, submission),
            partial=stream,
            index=submission.index,
            arrival_time=submission.arrival_time,
            standing=submission.standing,
        )

    def _deliver(self, submission: Submission, output: RequestOutput) -> None:
        submission.newest = output = replace(output, request_id=submission.request_id)
        if output.finished:
            self._end(submission)
            self._prompts.leave(submission)
        if not submission.outbox.put(output):
            self.leave(submission)

    def _drop(self, submission: Submission, *, tell: bool = False) -> None:
        if submission.engine_id is not None:
            self.session.abort(submission.engine_id)
        self._prompts.leave(submission)
        if tell:
            submission.outbox.put(submission.aborted())


def _nothing() -> None:
    pass
