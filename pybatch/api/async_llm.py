"""AsyncLLM: the engine on a thread of its own, for programs built on asyncio."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from copy import copy
from types import TracebackType
from typing import Any, Self

from pybatch.api.engine_args import EngineArgs
from pybatch.api.engine_thread import EngineThread
from pybatch.api.inputs import Conversation, Message, Prompt, chat_options
from pybatch.api.mailbox import Mailbox
from pybatch.api.model_handle import ModelHandle
from pybatch.api.pinned_prefix import PinnedPrefix, pinned
from pybatch.api.session import empty_output
from pybatch.api.vllm_names import refuse
from pybatch.engine import RequestOutput, RequestOutputKind, SamplingParams
from pybatch.engine.arguments import takes_fields_of
from pybatch.engine.lora_request import LoRARequest
from pybatch.engine.pooling_params import Params
from pybatch.engine.scheduling.block_pool import Pin
from pybatch.engine.standing import Standing


class AsyncLLM(ModelHandle):
    """LLM for asyncio. Requests of any number of tasks and event loops run in one batch.

    >>> async with AsyncLLM("smollm2-135m") as llm:
    ...     async for output in llm.generate("Once upon a time"):
    ...         print(output.outputs[0].text)

    Takes the arguments of EngineArgs, as LLM does. Close it with close(), or use it as an async context manager. In a
    forked child it raises RuntimeError, since its threads stay in the parent.
    """

    @takes_fields_of(EngineArgs)
    def __init__(self, arguments: EngineArgs) -> None:
        super().__init__(**vars(arguments))
        self.thread = EngineThread(self.session)
        # When it is garbage, and before the interpreter ends: a daemon thread must not be running then.
        self._close = weakref.finalize(self, self.thread.close)

    async def generate(
        self,
        prompt: Prompt,
        sampling_params: Params | None = None,
        request_id: str | None = None,
        *,
        lora_request: LoRARequest | None = None,
        priority: int = 0,
        user: str | None = None,
        ttft_target: float | None = None,
        tpot_target: float | None = None,
        trace_headers: None = None,
        tokenization_kwargs: None = None,
    ) -> AsyncIterator[RequestOutput]:
        """Yields the prompt's output as it grows, each time with everything so far, or what sampling_params.output_kind
        asks for; the last one is ``finished``. Of PoolingParams there is one, with ``pooled``.

        A slow reader skips to the newest output, and gets deltas in larger pieces. Leaving the loop, or cancelling its
        task, aborts the request. A prompt or parameters that cannot be run yield one output with ``error`` set, as LLM
        does.

        lora_request: the LoRA adapter to answer with, where enable_lora is on; it is loaded with its first request.
        request_id: for abort(), and unlike those of all unfinished requests; None: a number. priority: requests with a
        lower one run first. user: in whose name; users of one priority are served fairly, by tokens. ttft_target:
        seconds in which the first token is wanted; of one user's requests those that are due first run first.
        tpot_target: seconds from a token to the next; prompts beside it are computed in smaller pieces. Raises
        QueueFullError if too many others wait (max_queued), ValueError if the id is in use, RuntimeError once the
        AsyncLLM is closed.
        """
        refuse(
            trace_headers=trace_headers,
            tokenization_kwargs=tokenization_kwargs,
        )
        params = self.get_default_sampling_params() if sampling_params is None else copy(sampling_params)
        if not isinstance(params, SamplingParams):
            refuse(lora_request=lora_request)
        elif lora_request is not None:
            params.lora_request = lora_request
        deltas = getattr(params, "output_kind", None) is RequestOutputKind.DELTA
        mailbox = Mailbox(asyncio.get_running_loop(), deltas=deltas)
        try:
            standing = Standing(priority=priority, user=user, ttft_target=ttft_target, tpot_target=tpot_target)
        except ValueError as error:
            text = prompt if isinstance(prompt, str) else None
            yield empty_output(request_id or "", "error", text, error=str(error), error_code="invalid_request")
            return
        submission = self.thread.submit(prompt, params, request_id, mailbox, standing)
        try:
            while True:
                output = await mailbox.get()
                yield output
                if output.finished:
                    return
        finally:
            self.thread.leave(submission)

    def chat(
        self,
        messages: Sequence[Message],
        sampling_params: SamplingParams | None = None,
        request_id: str | None = None,
        *,
        chat_template: str | None = None,
        add_generation_prompt: bool | None = None,
        continue_final_message: bool = False,
        tools: Sequence[Mapping[str, Any]] | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        lora_request: LoRARequest | None = None,
        priority: int = 0,
        user: str | None = None,
        ttft_target: float | None = None,
        tpot_target: float | None = None,
    ) -> AsyncIterator[RequestOutput]:
        """As generate, for a conversation; the other arguments are those of LLM.chat."""
        options = chat_options(
            chat_template, add_generation_prompt, continue_final_message, tools, chat_template_kwargs
        )
        return self.generate(
            Conversation(messages, options),
            sampling_params,
            request_id,
            lora_request=lora_request,
            priority=priority,
            user=user,
            ttft_target=ttft_target,
            tpot_target=tpot_target,
        )

    async def abort(self, request_id: str | Iterable[str]) -> None:
        """Ends requests: their last output has what had come, and finish_reason "abort". Unknown ids are ignored."""
        for each in [request_id] if isinstance(request_id, str) else request_id:
            self.thread.abort(each)

    async def reset_prefix_cache(self) -> bool:
        """Forgets cached prefixes but pinned ones. Does nothing and returns False while requests are unfinished."""
        return await asyncio.to_thread(self.session.reset_prefix_cache)

    async def pin_prefix(self, prefix: Prompt | Sequence[Message]) -> PinnedPrefix:
        """As LLM.pin_prefix. If its task is cancelled nothing is pinned."""
        encoded = await asyncio.to_thread(self.session.encode_prefix, prefix)
        computed: Future[RequestOutput] = self.thread.expect_result()

        def receive(output: RequestOutput) -> None:
            if computed.set_running_or_notify_cancel():
                computed.set_result(output)

        def drop(adding: Future[tuple[str, Pin]]) -> None:
            if not adding.cancelled() and adding.exception() is None:
                request_id, pin = adding.result()
                self.session.abort(request_id)
                with suppress(RuntimeError):  # the engine's thread has ended
                    self.thread.call(lambda: self.session.unpin(pin))

        adding = self.thread.call(lambda: self.session.pin_prefix(encoded, receive))
        try:
            _, pin = await asyncio.wrap_future(adding)
            return pinned(self.session, pin, await asyncio.wrap_future(computed))
        except BaseException:
            adding.add_done_callback(drop)
            raise

    async def check_health(self) -> None:
        """Raises RuntimeError if requests can no longer be answered."""
        self.thread.expect_running()

    def close(self) -> None:
        """Stops the engine after the step under way. Unfinished requests raise RuntimeError where they are awaited."""
        self._close()

    shutdown = close

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        await asyncio.to_thread(self.close)


AsyncLLMEngine = AsyncLLM  # vLLM's other name of it
