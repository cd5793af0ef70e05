"""AsyncLLM: the engine on a thread of its own, for programs built on asyncio."""

from __future__ import annotations

import asyncio
import atexit
import itertools
import logging
import queue
import threading
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import suppress
from copy import copy
from dataclasses import replace
from types import TracebackType
from typing import Any, Self

from pybatch.api.engine_args import EngineArgs
from pybatch.api.inputs import Conversation, Message, Prompt, expect_tokenizer
from pybatch.api.session import Session
from pybatch.engine import RequestOutput, RequestOutputKind, SamplingParams
from pybatch.engine.arguments import takes_fields_of
from pybatch.model.text.tokenizer import Tokenizer

logger = logging.getLogger(__name__)


class AsyncLLM:
    """LLM for asyncio. Requests of any number of tasks and event loops run in one batch.

    >>> async with AsyncLLM("smollm2-135m") as llm:
    ...     async for output in llm.generate("Once upon a time"):
    ...         print(output.outputs[0].text)

    Takes the arguments of EngineArgs, as LLM does. Close it with close(), or use it as an async context manager.
    """

    @takes_fields_of(EngineArgs)
    def __init__(self, arguments: EngineArgs) -> None:
        self._session = Session.open(arguments)
        self.engine = self._session.engine
        self._numbers = itertools.count()
        self._commands: queue.SimpleQueue[Callable[[], object] | None] = queue.SimpleQueue()
        self._lock = threading.Lock()  # over the two below
        self._mailboxes: set[Mailbox] = set()
        self._ended = False
        self._thread = threading.Thread(target=self._work, name="pybatch-engine", daemon=True)
        self._thread.start()
        atexit.register(self.close)  # a daemon thread must not be running when the interpreter ends

    async def generate(
        self, prompt: Prompt, sampling_params: SamplingParams | None = None, request_id: str | None = None
    ) -> AsyncIterator[RequestOutput]:
        """Yields the prompt's output as it grows, each time with everything so far, or what sampling_params.output_kind
        asks for; the last one is ``finished``.

        A slow reader skips to the newest output, and gets deltas in larger pieces. Leaving the loop, or cancelling its
        task, drops the request. A prompt that cannot be run yields one output with ``error`` set, as LLM does.
        """
        request_id = str(next(self._numbers)) if request_id is None else request_id
        params = self.get_default_sampling_params() if sampling_params is None else copy(sampling_params)
        kind = getattr(params, "output_kind", None)
        mailbox = Mailbox(asyncio.get_running_loop(), deltas=kind is RequestOutputKind.DELTA)
        with self._lock:
            if self._ended:
                raise closed()
            self._mailboxes.add(mailbox)
        submitted: list[str] = []  # the engine's id; commands run in order, so it is there before it is aborted
        self._commands.put(lambda: submitted.append(self._session.submit(prompt, params, mailbox.put, partial=True)))
        try:
            while True:
                output = await mailbox.get()
                yield replace(output, request_id=request_id)
                if output.finished:
                    return
        finally:
            with self._lock:
                self._mailboxes.discard(mailbox)
            self._commands.put(lambda: self._session.abort(submitted[0]))

    def chat(
        self,
        messages: Sequence[Message],
        sampling_params: SamplingParams | None = None,
        request_id: str | None = None,
        *,
        chat_template: str | None = None,
        add_generation_prompt: bool = True,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> AsyncIterator[RequestOutput]:
        """As generate, for a conversation; the other arguments are those of LLM.chat."""
        options = {"chat_template": chat_template, "add_generation_prompt": add_generation_prompt}
        return self.generate(
            Conversation(messages, {**options, **(chat_template_kwargs or {})}), sampling_params, request_id
        )

    def get_tokenizer(self) -> Tokenizer:
        """The model's tokenizer. Raises ValueError if it was loaded without one."""
        return expect_tokenizer(self._session.tokenizer)

    def get_default_sampling_params(self) -> SamplingParams:
        """What is used where no SamplingParams are given: vLLM's defaults, but an output may fill the context."""
        return SamplingParams(max_tokens=None)

    def close(self) -> None:
        """Stops the engine after the step under way. Unfinished requests raise RuntimeError where they are awaited."""
        atexit.unregister(self.close)
        self._commands.put(None)
        self._thread.join()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        await asyncio.to_thread(self.close)

    def _work(self) -> None:
        try:
            while True:
                while self._session.idle or not self._commands.empty():
                    command = self._commands.get()
                    if command is None:
                        return
                    command()
                try:
                    self._session.step()
                except Exception:  # its requests have come out with an error; those to come have a sound engine
                    logger.exception("a step of the engine failed")
        finally:
            with self._lock:
                self._ended = True
                for mailbox in self._mailboxes:
                    mailbox.put(closed())


def closed() -> RuntimeError:
    return RuntimeError("this AsyncLLM is closed")


class Mailbox:
    """Holds the newest item that one thread puts in for one task to get.

    deltas: what has not been taken yet is not replaced by a newer output but goes on with it.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, *, deltas: bool = False) -> None:
        self._loop = loop
        self._deltas = deltas
        self._arrived = asyncio.Event()
        self._lock = threading.Lock()  # over the item
        self._item: RequestOutput | Exception | None = None

    def put(self, item: RequestOutput | Exception) -> None:
        with self._lock:
            if self._deltas and isinstance(self._item, RequestOutput) and isinstance(item, RequestOutput):
                self._item.add(item)
            else:
                self._item = item
        with suppress(RuntimeError):  # the loop is closed, and nobody waits any more
            self._loop.call_soon_threadsafe(self._arrived.set)

    async def get(self) -> RequestOutput:
        """Raises the item if it is an exception."""
        while True:
            await self._arrived.wait()
            self._arrived.clear()
            with self._lock:
                item, self._item = self._item, None
            if isinstance(item, Exception):
                raise item
            if item is not None:
                return item
