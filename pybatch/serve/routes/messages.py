"""Anthropic's /v1/messages."""

from __future__ import annotations

import asyncio
import uuid
from contextlib import aclosing
from dataclasses import replace

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from pybatch.api.protocols.anthropic_events import Event, MessageEvents
from pybatch.api.protocols.anthropic_requests import (
    ASKING_NOTHING,
    PROMPT_ASKING_NOTHING,
    MessageFields,
    PromptFields,
    as_chat,
    count_request,
    message_request,
)
from pybatch.api.protocols.anthropic_responses import message_response
from pybatch.api.protocols.generation import Generation
from pybatch.api.protocols.tool_calls.use import tool_use
from pybatch.serve.bodies import read
from pybatch.serve.errors import failure_event, failure_of
from pybatch.serve.openapi import ANTHROPIC_ERROR, body_schema, documented, object_with
from pybatch.serve.service import Served, Service
from pybatch.serve.sse import Events, event, event_stream

router = APIRouter()

BODY = body_schema(MessageFields, asking_nothing=ASKING_NOTHING)
PROMPT_BODY = body_schema(PromptFields, asking_nothing=PROMPT_ASKING_NOTHING)
ANSWER = object_with(id=str, type=str, role=str, model=str, content=list, usage=dict)
COUNT = object_with(input_tokens=int)
PROMPT_EXAMPLE = {"model": "MODEL", "messages": [{"role": "user", "content": "Hello"}]}
EXAMPLE = {**PROMPT_EXAMPLE, "max_tokens": 64}


@router.post("/v1/messages", **documented(BODY, answer=ANSWER, streams=True, error=ANTHROPIC_ERROR, example=EXAMPLE))
async def create_message(request: Request, service: Served) -> Response:
    body, asked = await read(request, message_request)
    model = service.expect_model(body.get("model"), adapters=True)
    asked = service.adapted(asked, model)
    id = uuid.uuid4().hex
    tools = tool_use(as_chat(body, asked), service.tokenizer)
    if tools is not None:
        asked = replace(asked, params={**asked.params, **tools.params})
    if body.get("stream"):

        def failed(error: Exception) -> bytes:
            return failure_event(request, *failure_of(request, error))

        return await event_stream(stream(service, asked, MessageEvents(body, id=id, model=model, tools=tools)), failed)
    (output,) = await service.outputs(asked)
    answer = service.answer(output)
    cached = output.num_cached_tokens
    return JSONResponse(message_response(body, answer, id=id, model=model, cached_tokens=cached, tools=tools))


@router.post(
    "/v1/messages/count_tokens",
    **documented(PROMPT_BODY, answer=COUNT, error=ANTHROPIC_ERROR, example=PROMPT_EXAMPLE),
)
async def count_tokens(request: Request, service: Served) -> Response:
    body, asked = await read(request, count_request)
    service.expect_model(body.get("model"), adapters=True)
    return JSONResponse({"input_tokens": await asyncio.to_thread(service.count_tokens, asked)})


async def stream(service: Service, asked: Generation, message: MessageEvents) -> Events:
    async with aclosing(service.stream(asked)) as outputs:
        async for _, output in outputs:
            made = b"".join(map(encode, message.of(output)))
            if made:
                yield made


def encode(each: Event) -> bytes:
    return event(each, each["type"])
