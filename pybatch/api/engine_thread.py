"""An engine on a thread of its own, beside one that tokenises."""

from __future__ import annotations

import gc
import itertools
import logging
import os
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any

from pybatch.api.inputs import Encoded, Prompt
from pybatch.api.mailbox import Mailbox
from pybatch.api.session import Session, empty_output
from pybatch.engine import RequestOutput, RequestOutputKind, SamplingParams

logger = logging.getLogger(__name__)

TOKENIZE_AT_ONCE = 16  # prompts
TOKENIZE_CHARACTERS = 1 << 16  # after which no further prompt joins those that are tokenised at once
INTAKE_SECONDS = 0.002  # the most that new requests may take between two steps of the running ones
YIELD_EVERY, YIELD_SECONDS = 0.001, 0.0001  # how often a busy submitter lets the engine's thread have the GIL


class Submission:
    """A request on its way: from the prompt's arrival to its last output."""

    __slots__ = (
        "admitted",
        "arrival_time",
        "cancelled",
        "engine_id",
        "mailbox",
        "newest",
        "params",
        "prompt",
        "request_id",
    )

    def __init__(self, prompt: Prompt, params: SamplingParams, request_id: str, mailbox: Mailbox) -> None:
        self.prompt, self.params, self.request_id, self.mailbox = prompt, params, request_id, mailbox
        self.arrival_time = time.perf_counter()
        self.admitted = False  # it takes one of the engine's places
        self.cancelled = False
        self.engine_id: str | None = None
        self.newest: RequestOutput | None = None


class EngineThread:
    """Runs a session's engine until it is closed. Every method may be called on any thread.

    Prompts go through two queues: the tokenising thread takes them in batches and in their order, as far as the engine
    has places, and hands them to the engine's, which spends a bounded time on them between two steps.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self._prompts: SimpleQueue[Submission | None] = SimpleQueue()
        self._commands: SimpleQueue[Callable[[], object] | None] = SimpleQueue()
        # As many as the policy can choose from; more would only be tokenised earlier, and walked by the collector.
        self._places = threading.Semaphore(2 * session.engine.config.max_num_seqs)
        self._lock = threading.Lock()  # over the three below, and which submissions are cancelled and admitted
        self._numbers = itertools.count()
        self._open: dict[str, Submission] = {}
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

    def submit(self, prompt: Prompt, params: SamplingParams, request_id: str | None, mailbox: Mailbox) -> Submission:
        """Queues a request whose outputs go to the mailbox. request_id: None for a number.

        Raises ValueError if the id is in use, RuntimeError if the engine's thread has ended.
        """
        with self._lock:
            self.expect_running()
            if request_id is None:
                request_id = next(name for number in self._numbers if (name := str(number)) not in self._open)
            elif request_id in self._open:
                raise ValueError(f"request_id: {request_id!r} is in use by a request that has not finished")
            submission = self._open[request_id] = Submission(prompt, params, request_id, mailbox)
        self._prompts.put(submission)
        self._yield()
        return submission

    def leave(self, submission: Submission) -> None:
        """Aborts the request unless it has finished; its outputs are no longer wanted."""
        if self._cancel(submission.request_id) is not None:
            self._commands.put(partial(self._drop, submission))

    def abort(self, request_id: str) -> None:
        """Aborts the request of that id. Its last output has what came before, with finish_reason "abort"."""
        submission = self._cancel(request_id)
        if submission is not None:
            self._commands.put(partial(self._drop, submission, tell=True))

    def close(self) -> None:
        """Ends both threads after the step under way. Mailboxes of unfinished requests get a RuntimeError."""
        self._closing = True
        self._prompts.put(None)  # wake them up
        self._places.release()
        self._commands.put(None)
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join()
        gc.unfreeze()

    def _yield(self) -> None:
        """Gives the engine's thread a chance to run. A busy event loop releases the GIL at each turn and has it back
        before a waiting thread is awake, and that thread's claim begins anew each time (CPython's take_gil)."""
        now = time.perf_counter()
        if now - self._progress > YIELD_EVERY and not self._session.idle:
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

    def _cancel(self, request_id: str) -> Submission | None:
        """The submission if it was still open, which is to be dropped then."""
        with self._lock:
            submission = self._open.pop(request_id, None)
            if submission is not None:
                submission.cancelled = True
            return submission

    def _admit(self, submission: Submission) -> bool:
        """Gives it the place that was acquired, unless it is cancelled."""
        with self._lock:
            submission.admitted = not submission.cancelled
        if not submission.admitted:
            self._places.release()
        return submission.admitted

    # ---- on the tokenising thread ----

    def _tokenize(self) -> None:
        while self._places.acquire() and (first := self._prompts.get()) is not None and not self._closing:
            batch, characters = [first], size(first)
            while len(batch) < TOKENIZE_AT_ONCE and characters < TOKENIZE_CHARACTERS:
                if not self._places.acquire(blocking=False):
                    break
                try:
                    following = self._prompts.get_nowait()
                except Empty:
                    self._places.release()
                    break
                if following is None:
                    return
                batch.append(following)
                characters += size(following)
            batch = [submission for submission in batch if self._admit(submission)]
            requests = [(submission.prompt, submission.params) for submission in batch]
            for submission, encoded in zip(batch, self._session.encode(requests), strict=True):
                self._commands.put(partial(self._add, submission, encoded))

    # ---- on the engine's thread ----

    def _run(self) -> None:
        ended = RuntimeError("this AsyncLLM is closed")
        try:
            while self._take_commands():
                self._progress = time.perf_counter()
                try:
                    self._session.step()
                except BaseException:  # its requests have come out with an error; those to come have a sound engine
                    logger.exception("a step of the engine failed")
        except BaseException as error:
            ended = RuntimeError(f"the engine's thread has ended: {type(error).__name__}: {error}")
            logger.exception("the engine's thread has ended")
        finally:
            with self._lock:
                self._ended = ended
                waiting, self._open = self._open, {}
            for submission in waiting.values():
                submission.mailbox.put(ended)
                self._drop(submission)

    def _take_commands(self) -> bool:
        """Runs commands, for INTAKE_SECONDS at most while requests are running; waits for one if none are. Returns
        False if the thread is to end."""
        start = None
        while True:
            idle = self._session.idle
            if not idle and start is not None and time.perf_counter() - start > INTAKE_SECONDS:
                return True
            try:
                command = self._commands.get(block=idle)
            except Empty:
                return True
            if command is None or self._closing:
                return False
            start = start or time.perf_counter()
            command()

    def _add(self, submission: Submission, encoded: Encoded) -> None:
        if not submission.cancelled:
            submission.engine_id = self._session.add(
                encoded,
                submission.params,
                partial(self._deliver, submission),
                partial=True,
                arrival_time=submission.arrival_time,
            )

    def _deliver(self, submission: Submission, output: RequestOutput) -> None:
        submission.newest = output = replace(output, request_id=submission.request_id)
        if output.finished and self._cancel(submission.request_id) is not None:
            self._places.release()
        if not submission.mailbox.put(output):
            self.leave(submission)

    def _drop(self, submission: Submission, *, tell: bool = False) -> None:
        if submission.engine_id is not None:
            self._session.abort(submission.engine_id)
        if submission.admitted:
            self._places.release()
        if tell:
            submission.mailbox.put(aborted(submission))


def aborted(submission: Submission) -> RequestOutput:
    """The last output of an aborted request: everything so far, or an empty delta."""
    newest = submission.newest
    if newest is None:
        return empty_output(submission.request_id, "abort")
    nothing: dict[str, Any] = {}
    if submission.params.output_kind is RequestOutputKind.DELTA:
        nothing = {"text": "", "token_ids": [], "logprobs": None}
    outputs = [replace(each, finish_reason=each.finish_reason or "abort", **nothing) for each in newest.outputs]
    return replace(newest, outputs=outputs, finished=True)


def size(submission: Submission) -> int:
    return len(submission.prompt) if isinstance(submission.prompt, str) else 0
