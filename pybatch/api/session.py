"""Prompts into an engine, and its outputs to whoever asked: what LLM and AsyncLLM share."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable

from pybatch.api.engine_args import EngineArgs
from pybatch.api.inputs import Prompt, encode
from pybatch.engine import CompletionOutput, Engine, RequestOutput, SamplingParams
from pybatch.engine.metrics import RequestMetrics
from pybatch.machine.threads import set_threads
from pybatch.model.loader import load_model
from pybatch.model.text.tokenizer import Tokenizer

Receiver = Callable[[RequestOutput], None]


class Session:
    """An engine with its tokenizer. Every method is called from one thread at a time."""

    def __init__(self, engine: Engine, tokenizer: Tokenizer | None) -> None:
        self.engine = engine
        self.tokenizer = tokenizer
        self._ids = itertools.count()
        self._receivers: dict[str, Receiver] = {}

    @classmethod
    def open(cls, arguments: EngineArgs) -> Session:
        """Loads the model and makes its engine."""
        set_threads(arguments.threads)
        loaded = load_model(
            arguments.model,
            dtype=arguments.dtype,
            quantization=arguments.quantization,
            device=arguments.device,
            max_model_len=arguments.max_model_len,
            tokenizer=arguments.tokenizer,
            skip_tokenizer=arguments.skip_tokenizer_init,
        )
        return cls(Engine(loaded.decoder, loaded.tokenizer, arguments), loaded.tokenizer)

    def submit(self, prompt: Prompt, params: SamplingParams, receive: Receiver, *, partial: bool = False) -> str:
        """Adds a request and returns its id. ``receive`` gets its output when it has finished, and if ``partial`` after
        every step. A prompt that cannot be run is received at once, as an output with ``error`` set."""
        number = next(self._ids)
        request_id = str(number)
        truncates = isinstance(params, SamplingParams) and params.truncate_prompt_tokens is not None
        (encoded,) = encode([prompt], self.tokenizer, None if truncates else self.engine.max_model_len - 1)
        text, ids = encoded.text, encoded.token_ids
        try:
            if encoded.error is not None:
                raise ValueError(encoded.error)
            self.engine.add_request(request_id, ids, params, prompt=text, stream=partial, index=number)
        except ValueError as error:
            receive(failed(request_id, text, ids, str(error)))
        else:
            self._receivers[request_id] = receive
        return request_id

    def step(self) -> None:
        """One step of the engine, and its outputs to their receivers. If it raises, the engine has dropped all its
        requests, so every receiver gets a failed output."""
        try:
            outputs = self.engine.step()
        except BaseException as error:
            lost, self._receivers = self._receivers, {}
            for request_id, receive in lost.items():
                receive(failed(request_id, None, [], f"dropped by a failed step: {error!r}"))
            raise
        for output in outputs:
            receivers = self._receivers
            receive = receivers.pop(output.request_id) if output.finished else receivers[output.request_id]
            receive(output)

    def abort(self, request_id: str) -> None:
        """Drops a request; nothing is received of it any more. One that has finished may be named too."""
        if self._receivers.pop(request_id, None) is not None:
            self.engine.abort(request_id)

    @property
    def idle(self) -> bool:
        return not self._receivers


def failed(request_id: str, prompt: str | None, prompt_token_ids: list[int], error: str) -> RequestOutput:
    """The output of a request that never ran."""
    empty = CompletionOutput(
        index=0, text="", token_ids=[], cumulative_logprob=None, logprobs=None, finish_reason="error", stop_reason=None
    )
    return RequestOutput(
        request_id=request_id,
        prompt=prompt,
        prompt_token_ids=prompt_token_ids,
        prompt_logprobs=None,
        outputs=[empty],
        finished=True,
        metrics=RequestMetrics(arrival_time=time.perf_counter(), num_prompt_tokens=len(prompt_token_ids)),
        error=error,
    )
