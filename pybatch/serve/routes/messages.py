"""Anthropic's /v1/messages."""

from __future__ import annotations

import asyncio
import uuid
from contextlib import aclosing

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from pybatch.api.protocols.anthropic_events import Event, MessageEvents
from pybatch.api.protocols.anthropic_requests import count_request, message_request
from pybatch.api.protocols.anthropic_responses import message_response
from pybatch.api.protocols.generation import Generation
from pybatch.serve.bodies import read_json
from pybatch.serve.errors import failure_event, failure_of
from pybatch.serve.service import Served, Service
from pybatch.serve.sse import Events, event, event_stream

router = APIRouter()


@router.post("/v1/messages")
async def create_message(request: Request, service: Served) -> Response:
    body = await read_json(request)
    asked = message_request(body)
    model = service.expect_model(body.get("model"))
    id = uuid.uuid4().hex
    if body.get("stream"):

        def failed(error: Exception) -> bytes:
            return failure_event(request, *failure_of(request, error))

        return await event_stream(stream(service, asked, MessageEvents(body, id=id, model=model)), failed)
    (output,) = await service.outputs(asked)
    answer = service.answer(output)
    return JSONResponse(message_response(body, answer, id=id, model=model, cached_tokens=output.num_cached_tokens))


@router.post("/v1/messages/count_tokens")
async def count_tokens(request: Request, service: Served) -> dict[str, int]:
    body = await read_json(request)
    asked = count_request(body)
    service.expect_model(body.get("model"))
    return {"input_tokens": await asyncio.to_thread(service.count_tokens, asked)}


async def stream(service: Service, asked: Generation, message: MessageEvents) -> Events:
    async with aclosing(service.stream(asked)) as outputs:
        async for _, output in outputs:
            made = b"".join(map(encode, message.of(output)))
            if made:
                yield made


def encode(each: Event) -> bytes:
    return event(each, each["type"])
