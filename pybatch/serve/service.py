"""The model, and what all doors to it share."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import asdict, replace
from typing import Annotated

from fastapi import Depends, Request

from pybatch.api.async_llm import AsyncLLM
from pybatch.api.inputs import Conversation, Prompt, fault_of
from pybatch.api.lora_names import adapter_params
from pybatch.api.outcomes import Answer, Failure, outcome_of
from pybatch.api.protocols.generation import Generation
from pybatch.api.protocols.request_error import RequestError
from pybatch.api.protocols.sampling import NAMES, merged
from pybatch.api.scoring import planned
from pybatch.engine import RequestOutput, RequestOutputKind
from pybatch.engine.pooling_params import Params, PoolingParams
from pybatch.model.text.tokenizer import Tokenizer
from pybatch.serve.batches import BatchRunner
from pybatch.serve.bounds import expect_bounded, expect_few, expect_few_messages
from pybatch.serve.errors import NotFoundError, RefusedError
from pybatch.serve.guard.lifetime import OpenRequests
from pybatch.serve.limits import payer
from pybatch.serve.merge import merge
from pybatch.serve.settings import ServerSettings
from pybatch.serve.store import Storage
from pybatch.serve.watched import CURRENT

Outputs = AsyncGenerator[tuple[int, RequestOutput], None]
"""With each output the number of its prompt."""


class Service:
    """Answers what the routes have read from requests.

    names: what requests may call the model; the first one is reported. adapters: by the names that requests may give in
    its place. created: when the server began, in seconds since 1970.
    """

    def __init__(self, llm: AsyncLLM, settings: ServerSettings, storage: Storage) -> None:
        self.llm, self.settings, self.storage = llm, settings, storage
        self.names = settings.served_model_name or [str(vars(llm.engine.config)["model"])]
        self.adapters = llm.session.adapters
        for name in self.adapters:
            if name in self.names:
                raise ValueError(f"lora_modules: {name!r} is the model's own name")
        self.created = int(time.time())
        self.requests = OpenRequests()
        self.at_shutdown: list[Callable[[], Awaitable[object]]] = []  # called when the server begins to stop
        self.batches = BatchRunner(
            storage,
            llm,
            tuple(self.names),
            at_once=settings.max_running_batches,
            most_rows=settings.max_batch_requests,
        )
        self.prompts = 0  # that are being answered; those of batches are not among them

    @property
    def tokenizer(self) -> Tokenizer | None:
        return self.llm.session.tokenizer

    @property
    def vocab_size(self) -> int:
        return self.llm.engine.decoder.config.vocab_size

    def expect_model(self, name: object, *, adapters: bool = False) -> str:
        """The name to report. adapters: it may be one's. Raises NotFoundError for another model than those served."""
        if name is None:
            raise RequestError("model: missing", "missing_required_parameter", "model")
        names = [*self.names, *(self.adapters if adapters else ())]
        if name not in names:
            known = " or ".join(map(repr, names))
            raise NotFoundError(f"model: expected {known}, got {name!r:.80}", "model_not_found", "model")
        return str(name)

    def adapted(self, asked: Generation, model: str) -> Generation:
        """With the adapter that the request names as its model, if it does."""
        return replace(asked, params={**asked.params, **adapter_params(model, self.adapters)})

    async def stream(self, asked: Generation) -> Outputs:
        """What is new of each prompt's output, with the prompt's number, as it comes. Leaving the loop aborts.

        Raises RefusedError for a prompt that cannot be run.
        """
        async with aclosing(self._outputs(asked, RequestOutputKind.DELTA)) as outputs:
            async for output in outputs:
                yield output

    async def pooled(self, asked: Generation) -> Answer:
        """The answer to a request that generates nothing. Raises RefusedError if one of its prompts cannot be run."""
        assert asked.pooling is not None
        session = self.llm.session
        self._expect_few(asked)
        plan = planned(asked.prompts, asked.pairs, asked.pooling, session.scorer, session.tokenizer)
        if isinstance(plan, Failure):
            raise refusal(plan.message, plan.code, {"truncate_prompt_tokens": "truncate_prompt_tokens"})
        assert isinstance(plan.params, PoolingParams)
        return plan.answer(await self.answers(replace(asked, prompts=tuple(plan.prompts), pooling=plan.params)))

    async def answers(self, asked: Generation) -> list[Answer]:
        """An answer for each prompt. Raises RefusedError if one of them cannot be run."""
        return [self.answer(output) for output in await self.outputs(asked)]

    async def outputs(self, asked: Generation) -> list[RequestOutput]:
        """The output of each prompt. Raises RefusedError if one of them cannot be run."""
        found: dict[int, RequestOutput] = {}
        kind = RequestOutputKind.FINAL_ONLY if payer.get().tokens is None else RequestOutputKind.DELTA
        async with aclosing(self._outputs(asked, kind)) as outputs:
            async for number, output in outputs:
                if number in found:
                    found[number].add(output)
                else:
                    found[number] = output
        return [found[number] for number in range(len(asked.prompts))]

    def answer(self, output: RequestOutput) -> Answer:
        """Of an output without an error."""
        answer = outcome_of(output, self.tokenizer)
        assert isinstance(answer, Answer)
        return answer

    def count_tokens(self, prompt: Conversation) -> int:
        """Of a prompt, which may be somewhat longer than the model's context. Raises RefusedError if it is none, or so
        long that it is not worth the memory to tokenise it."""
        expect_few_messages(prompt)
        (encoded,) = self.llm.session.encode([(prompt, self.llm.session.default_params)])
        if encoded.error is not None:
            raise refusal(encoded.error, encoded.error_code, {"prompt": "messages"})
        return len(encoded.token_ids)

    async def _outputs(self, asked: Generation, kind: RequestOutputKind) -> Outputs:
        engine = self.llm.engine
        self._expect_few(asked)
        params: Params
        if asked.pooling is not None:
            params = asked.pooling
        else:
            params = replace(merged(self.llm.session.default_params, asked.params), output_kind=kind)
        expect_bounded(asked, params)
        self.llm.thread.expect_place(len(asked.prompts))
        watched, unique = CURRENT.get(), uuid.uuid4().hex
        ids = [f"{unique}-{number}" for number in range(len(asked.prompts))]
        if watched is not None:
            adapter = asked.params.get("lora_request")
            watched.asks(ids, params, self.names[0] if adapter is None else adapter.lora_name)
        self.prompts += len(asked.prompts)
        account = payer.get()
        counted = account.tokens is not None
        standing = asked.standing
        if account.user is not None:  # a key has one share, whatever names it gives
            standing = replace(standing, user=account.user)
        try:
            prompts: Sequence[Prompt] = asked.prompts
            # With several, none is to run if one of them cannot: what was streamed could not be taken back. And what
            # would wait for the engine is refused at once, not when a stream has been kept alive for a while.
            if len(prompts) > 1 or counted or self.prompts > engine.config.max_num_seqs:
                encoded = await asyncio.to_thread(self._encoded, asked, params)
                account.charge_tokens(sum(map(len, encoded)))
                prompts = [{"prompt_token_ids": token_ids} for token_ids in encoded]
            streams = [
                self.llm.generate(prompt, params, id, **asdict(standing))
                for prompt, id in zip(prompts, ids, strict=True)
            ]
            async with aclosing(merge(streams)) as outputs:
                async for number, output in outputs:
                    if watched is not None:
                        watched.takes(number, output)
                    if output.error is not None:
                        raise refusal(output.error, output.error_code, names_in(asked, number))
                    if counted:  # so `kind` is DELTA
                        account.charge_tokens(sum(len(sample.token_ids) for sample in output.outputs))
                    yield number, output
        finally:
            self.prompts -= len(asked.prompts)

    def _expect_few(self, asked: Generation) -> None:
        expect_few(asked, self.vocab_size, self.llm.engine.config.most_requests)

    def _encoded(self, asked: Generation, params: Params) -> list[list[int]]:
        """The prompts as token ids. Raises RefusedError if one of them cannot be run."""
        found = []
        for number, each in enumerate(self.llm.session.encode([(prompt, params) for prompt in asked.prompts])):
            if each.error is None:
                with fault_of(each):
                    self.llm.engine.expect_runnable(each.token_ids, params)
            if each.error is not None:
                raise refusal(each.error, each.error_code, names_in(asked, number))
            found.append(each.token_ids)
        return found


def names_in(asked: Generation, number: int) -> dict[str, str]:
    """What the request calls its parameters and the prompt of that number."""
    prompt = asked.names.get("prompt", "prompt") + ("" if len(asked.prompts) == 1 else f"[{number}]")
    if isinstance(asked.prompts[number], Conversation):
        prompt = "messages"
    own = (
        {}
        if asked.pooling is None
        else {"dimensions": "dimensions", "truncate_prompt_tokens": "truncate_prompt_tokens"}
    )
    return {**asked.names, "prompt": prompt, **own}


def refusal(error: str, code: str | None, names: Mapping[str, str]) -> RefusedError:
    """Of an error that begins with a parameter's name. names: other ones that the request has for parameters."""
    name = error.partition(":")[0]
    known = names.get(name, name if name in NAMES else None)
    message = error if known is None else known + error.removeprefix(name)
    return RefusedError(Failure(message, code or "invalid_request", known))


def service_of(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


Served = Annotated[Service, Depends(service_of)]
"""The type of a route's argument that is the service."""
