"""The model, and what all doors to it share."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import replace
from typing import Annotated

from fastapi import Depends, Request

from pybatch.api.async_llm import AsyncLLM
from pybatch.api.outcomes import Answer, Failure, outcome_of
from pybatch.api.protocols.generation import Generation
from pybatch.api.protocols.request_error import RequestError
from pybatch.api.protocols.sampling import merged
from pybatch.engine import RequestOutput, RequestOutputKind
from pybatch.serve.errors import NotFoundError, QueueFullError, RefusedError
from pybatch.serve.guard.lifetime import OpenRequests
from pybatch.serve.merge import merge
from pybatch.serve.settings import ServerSettings

Outputs = AsyncGenerator[tuple[int, RequestOutput], None]
"""With each output the number of its prompt."""


class Service:
    """Answers what the routes have read from requests.

    names: what requests may call the model; the first one is reported. created: when the server began, in seconds since
    1970.
    """

    def __init__(self, llm: AsyncLLM, settings: ServerSettings) -> None:
        self.llm, self.settings = llm, settings
        self.names = settings.served_model_name or [str(vars(llm.engine.config)["model"])]
        self.created = int(time.time())
        self.requests = OpenRequests()
        self.at_shutdown: list[Callable[[], Awaitable[object]]] = []  # called when the server begins to stop
        self.prompts = 0  # that are being answered; those of batches are not among them

    def expect_model(self, name: object) -> str:
        """The name to report. Raises NotFoundError for another model than the one that is served."""
        if name is None:
            raise RequestError("model: missing", "missing_required_parameter", "model")
        if name not in self.names:
            known = " or ".join(map(repr, self.names))
            raise NotFoundError(f"model: expected {known}, got {name!r:.80}", "model_not_found", "model")
        return str(name)

    async def stream(self, asked: Generation) -> Outputs:
        """What is new of each prompt's output, with the prompt's number, as it comes. Leaving the loop aborts.

        Raises RefusedError for a prompt that cannot be run.
        """
        async with aclosing(self._outputs(asked, RequestOutputKind.DELTA)) as outputs:
            async for output in outputs:
                yield output

    async def answers(self, asked: Generation) -> list[Answer]:
        """An answer for each prompt. Raises RefusedError if one of them cannot be run."""
        found: dict[int, Answer] = {}
        async with aclosing(self._outputs(asked, RequestOutputKind.FINAL_ONLY)) as outputs:
            async for number, output in outputs:
                answer = outcome_of(output, self.llm.session.tokenizer)
                assert isinstance(answer, Answer)
                found[number] = answer
        return [found[number] for number in range(len(asked.prompts))]

    async def _outputs(self, asked: Generation, kind: RequestOutputKind) -> Outputs:
        params = replace(merged(self.llm.session.default_params, asked.params), output_kind=kind)
        if self.prompts >= self.llm.engine.config.max_num_seqs + self.settings.max_queue:
            raise QueueFullError
        self.prompts += len(asked.prompts)
        try:
            async with aclosing(merge([self.llm.generate(prompt, params) for prompt in asked.prompts])) as outputs:
                async for number, output in outputs:
                    if output.error is not None:
                        raise RefusedError(Failure(output.error, output.error_code or "invalid_request"))
                    yield number, output
        finally:
            self.prompts -= len(asked.prompts)


def service_of(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


Served = Annotated[Service, Depends(service_of)]
"""The type of a route's argument that is the service."""
