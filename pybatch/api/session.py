"""Feeds prompts to an engine and hands its outputs to their receivers: what LLM and AsyncLLM share."""

from __future__ import annotations

import itertools
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import TYPE_CHECKING, cast

from pybatch.api.alerts import Alerts
from pybatch.api.fair_lock import FairLock
from pybatch.api.inputs import (
    Conversation,
    Encoded,
    Message,
    Prompt,
    chat_options,
    encode,
    fault_of,
    is_conversation,
)
from pybatch.api.lora_names import named_adapters
from pybatch.api.scoring import Scorer
from pybatch.api.settings import EngineSettings, engine_settings
from pybatch.engine import CompletionOutput, Engine, RequestOutput, SamplingParams
from pybatch.engine.config import EngineConfig
from pybatch.engine.errors import QueueFullError
from pybatch.engine.lora_request import LoRARequest
from pybatch.engine.metrics import EngineMetrics, RequestMetrics
from pybatch.engine.outputs import FinishReason
from pybatch.engine.pooling_params import Params, PoolingParams
from pybatch.engine.scheduling.block_pool import Pin
from pybatch.engine.standing import ORDINARY, Standing
from pybatch.machine.facts import arithmetic
from pybatch.model.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from pybatch.tune.autotune import Tuned

Receiver = Callable[[RequestOutput], None]


class Session:
    """An engine with its tokenizer, for any number of threads: their requests run in one batch, and the engine is used
    by one thread at a time. A receiver is called on the thread whose step brought the output."""

    def __init__(self, engine: Engine, tokenizer: Tokenizer | None, default_params: SamplingParams) -> None:
        self.engine = engine
        self.tokenizer = tokenizer
        self.default_params = default_params
        self._ids = itertools.count()
        self._receivers: dict[str, Receiver] = {}
        self._aborted: deque[str] = deque()
        self._lock = FairLock()  # over the engine and the receivers
        self.alerts = Alerts(engine)
        self.tuned: Tuned | None = None  # what was chosen, and why, where that was asked for
        self.unpacked = False  # as LoadedModel has it
        self.fault: BaseException | None = None  # of the step that has discarded what is being received

    @property
    def adapters(self) -> dict[str, LoRARequest]:
        """By the names that requests and rows call them."""
        return named_adapters(getattr(self.config, "lora_modules", None))

    @property
    def metrics(self) -> EngineMetrics:
        return self.engine.metrics

    @property
    def capacity(self) -> int:
        """How many requests to have here at a time, so that the batching policy has some to choose from."""
        return self.config.requests_ahead

    @property
    def config(self) -> EngineConfig:
        return self.engine.config

    @property
    def max_model_len(self) -> int:
        return self.engine.max_model_len

    @property
    def arithmetic(self) -> str:
        """What the bits of its outputs depend on besides the model, its precision and pybatch's version."""
        return arithmetic(self.engine.decoder.device, self.engine.decoder.dtype)

    @property
    def settings(self) -> EngineSettings:
        return engine_settings(self.engine)

    @cached_property
    def scorer(self) -> Scorer:
        return Scorer.of(self.engine)

    def encode(self, requests: Sequence[tuple[Prompt, Params]]) -> list[Encoded]:
        """Token ids for each prompt. Does not use the engine, which another thread may run meanwhile."""
        return encode_requests(requests, self.tokenizer, self.engine.max_model_len)

    def encode_prefix(self, prefix: Prompt | Sequence[Message]) -> Encoded:
        """Of a prompt, or of messages that go through the chat template without the opening of an answer."""
        if is_conversation(prefix):
            messages = cast(Sequence[Message], prefix)
            prefix = Conversation(messages, chat_options(None, False, False, None, None))
        return self.encode([(cast(Prompt, prefix), SamplingParams())])[0]

    def add(
        self,
        prompt: Encoded,
        params: Params,
        receive: Receiver,
        *,
        partial: bool = False,
        index: int | None = None,
        arrival_time: float | None = None,
        standing: Standing = ORDINARY,
    ) -> str:
        """Adds a request and returns its id. ``receive`` gets its output when it has finished, and if ``partial`` after
        every step. A request that cannot be run is received at once, as an output with ``error`` set. Raises
        QueueFullError if too many others wait.

        index: seeds the draws of a request without a seed; None: the number of requests before it. arrival_time: of the
        prompt, by time.perf_counter(); None: now. standing: when it runs."""
        number = next(self._ids)
        request_id = str(number)
        if prompt.error is None:
            with self._engine_alone(), fault_of(prompt, but=QueueFullError):
                self.engine.add_request(
                    request_id,
                    prompt.token_ids,
                    params,
                    prompt=prompt.text,
                    stream=partial,
                    index=number if index is None else index,
                    arrival_time=arrival_time,
                    standing=standing,
                )
                self._receivers[request_id] = receive
        if prompt.error is not None:
            receive(empty_output(request_id, "error", prompt.text, prompt.token_ids, prompt.error, prompt.error_code))
        return request_id

    def pin_prefix(self, prompt: Encoded, receive: Receiver) -> tuple[str, Pin]:
        """Adds a request that computes a prefix and pins it, and returns its id and the pin, which holds once `receive`
        has had an output without an error. Raises ValueError where that cannot be."""
        if prompt.error is not None:
            raise ValueError(prompt.error)
        request_id = str(next(self._ids))
        with self._engine_alone():
            pin = self.engine.pin_prefix(request_id, prompt.token_ids)
            self._receivers[request_id] = receive
        return request_id, pin

    def unpin(self, pin: Pin) -> None:
        """Lets the blocks of a pinned prefix go."""
        with self._engine_alone():
            self.engine.unpin(pin)

    def step(self, unless: Collection[object] = ()) -> None:
        """One step of the engine, and its outputs to their receivers. No step if `unless` is not empty when it is this
        thread's turn: another thread's step has brought what it waits for.

        Raises what the engine's step raises. Outputs that were ready are received before; every other receiver gets a
        failed output, since the engine has discarded its request.
        """
        with self._engine_alone():
            if unless:
                return
            try:
                outputs = self.engine.step()
            except BaseException as error:
                self._deliver(self.engine.take_outputs())
                lost, self._receivers = self._receivers, {}
                reason = f"discarded by a failed step: {error!r}"
                self.fault = error
                try:
                    for request_id, receive in list(lost.items()):
                        receive(empty_output(request_id, "error", error=reason, error_code="server_error"))
                finally:
                    self.fault = None
                raise
            self._deliver(outputs)
            self.alerts.look()

    def _deliver(self, outputs: Sequence[RequestOutput]) -> None:
        for output in outputs:
            take = self._receivers.pop if output.finished else self._receivers.get
            receiver = take(output.request_id, None)
            if receiver is not None:  # None: aborted while the step ran
                receiver(output)

    def abort(self, request_id: str) -> None:
        """Ends a request; nothing more is received of it. Does nothing for one that has finished.

        Never waits, so that a finalizer may call it in the middle of a step: the engine then aborts after the step.
        """
        if self._receivers.pop(request_id, None) is not None:
            self._aborted.append(request_id)
            self._abort_in_engine()

    def reset_prefix_cache(self) -> bool:
        """Forgets cached prefixes but pinned ones. Does nothing and returns False while requests are unfinished."""
        with self._engine_alone():
            return self.engine.reset_prefix_cache()

    @property
    def idle(self) -> bool:
        return not self._receivers

    @contextmanager
    def _engine_alone(self) -> Iterator[None]:
        try:
            with self._lock:
                yield
        finally:
            self._abort_in_engine()

    def _abort_in_engine(self) -> None:
        # If another thread holds the lock, it comes here after releasing it.
        while self._aborted and self._lock.acquire(blocking=False):
            try:
                while self._aborted:
                    self.engine.abort(self._aborted.popleft())
            finally:
                self._lock.release()


def encode_requests(
    requests: Sequence[tuple[Prompt, Params]], tokenizer: Tokenizer | None, max_model_len: int
) -> list[Encoded]:
    """Token ids for each prompt; what cannot come to so few tokens that it could run has an error."""
    limits = [
        None
        if getattr(params, "truncate_prompt_tokens", None) is not None
        else max_model_len - (not isinstance(params, PoolingParams))
        for _, params in requests
    ]
    return encode([prompt for prompt, _ in requests], tokenizer, limits)


def empty_output(
    request_id: str,
    finish_reason: FinishReason,
    prompt: str | None = None,
    prompt_token_ids: Sequence[int] = (),
    error: str | None = None,
    error_code: str | None = None,
) -> RequestOutput:
    """The output of a request that never ran."""
    completion = CompletionOutput(
        index=0,
        text="",
        token_ids=[],
        cumulative_logprob=None,
        logprobs=None,
        finish_reason=finish_reason,
        stop_reason=None,
    )
    return RequestOutput(
        request_id=request_id,
        prompt=prompt,
        prompt_token_ids=list(prompt_token_ids),
        prompt_logprobs=None,
        outputs=[completion],
        finished=True,
        metrics=RequestMetrics(arrival_time=time.perf_counter(), num_prompt_tokens=len(prompt_token_ids)),
        error=error,
        error_code=error_code,
    )
