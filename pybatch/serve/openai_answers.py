"""What OpenAI's routes have in common: answers in pieces or whole."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable
from contextlib import aclosing
from typing import Any

from fastapi.responses import Response

from pybatch.api.protocols.generation import Generation
from pybatch.api.protocols.openai_chunks import Chunks
from pybatch.api.protocols.openai_responses import error_body
from pybatch.serve.errors import SERVER_ERROR, RefusedError
from pybatch.serve.service import Service
from pybatch.serve.sse import Events, event, event_stream

logger = logging.getLogger(__name__)

DONE = event("[DONE]")


async def stream(service: Service, asked: Generation, chunks: Chunks) -> Response:
    """Raises RefusedError for prompts that cannot be run."""

    async def events() -> Events:
        async with aclosing(service.stream(asked)) as outputs:
            async for number, output in outputs:
                made = b"".join(map(event, chunks.add(number, output)))
                if made:
                    yield made
        yield b"".join(map(event, chunks.end())) + DONE

    return await event_stream(events(), failed)


def failed(error: Exception) -> bytes:
    """The last event of a stream."""
    if isinstance(error, RefusedError):
        return event(error_body(error.failure))
    logger.error("a stream failed", exc_info=error)
    return event(error_body(SERVER_ERROR))


async def whole(asked: Generation, make: Callable[[], dict[str, Any]]) -> Response:
    """A response with the body that `make` makes; on a thread if that takes long, so that other clients are served."""

    def body() -> bytes:
        return json.dumps(make(), ensure_ascii=False, separators=(",", ":")).encode()

    long = asked.params.get("logprobs") is not None or asked.params.get("prompt_logprobs") is not None
    return Response(await asyncio.to_thread(body) if long else body(), media_type="application/json")
