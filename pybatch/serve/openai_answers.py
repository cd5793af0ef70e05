"""What OpenAI's routes have in common: answers in pieces or whole."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import aclosing
from typing import Any

from fastapi import Request
from fastapi.responses import JSONResponse, Response

from pybatch.api.protocols.generation import Generation
from pybatch.api.protocols.openai_chunks import Chunks
from pybatch.api.protocols.openai_requests import StreamOptions, split_stream
from pybatch.serve.bodies import read
from pybatch.serve.errors import failure_event, failure_of
from pybatch.serve.service import Service
from pybatch.serve.sse import Events, event, event_stream

DONE = event("[DONE]")


async def read_asked(
    request: Request, asked_by: Callable[[Any], Generation]
) -> tuple[StreamOptions | None, Any, Generation]:
    """How the answer is to be streamed, if it is, the rest of the body, and what that asks. Raises RequestError."""

    def made(body: Any) -> tuple[StreamOptions | None, Any, Generation]:
        options, rest = split_stream(body)
        return options, rest, asked_by(rest)

    _, asked = await read(request, made)
    return asked


async def stream(request: Request, service: Service, asked: Generation, chunks: Chunks) -> Response:
    """Raises RefusedError for prompts that cannot be run."""

    async def events() -> Events:
        async with aclosing(service.stream(asked)) as outputs:
            async for number, output in outputs:
                made = b"".join(map(event, chunks.add(number, output)))
                if made:
                    yield made
        yield b"".join(map(event, chunks.end())) + DONE

    return await event_stream(events(), lambda error: failure_event(request, *failure_of(request, error)))


async def whole(asked: Generation, make: Callable[[], dict[str, Any]]) -> Response:
    """A response with the body that `make` makes; on a thread if that takes long, so that other clients are served."""
    if asked.params.get("logprobs") is None and asked.params.get("prompt_logprobs") is None:
        return JSONResponse(make())
    return await asyncio.to_thread(lambda: JSONResponse(make()))
