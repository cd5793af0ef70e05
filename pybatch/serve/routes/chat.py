"""OpenAI's /v1/chat/completions."""

from __future__ import annotations

import time
import uuid
from dataclasses import replace
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from pybatch.api.protocols.openai_chunks import ChatChunks
from pybatch.api.protocols.openai_requests import (
    CHAT_ASKING_NOTHING,
    SAMPLING,
    ChatFields,
    StreamFields,
    chat_request,
)
from pybatch.api.protocols.openai_responses import chat_completion
from pybatch.api.protocols.tool_calls.use import tool_use
from pybatch.serve.openai_answers import read_asked, stream, whole
from pybatch.serve.openapi import body_schema, documented, object_with
from pybatch.serve.service import Served

router = APIRouter()

BODY = body_schema(ChatFields, StreamFields, sampling=SAMPLING, asking_nothing=CHAT_ASKING_NOTHING)
ANSWER = object_with(id=str, object=str, created=int, model=str, choices=list, usage=dict)
EXAMPLE = {"model": "MODEL", "messages": [{"role": "user", "content": "Hello"}]}


@router.post("/v1/chat/completions", **documented(BODY, answer=ANSWER, streams=True, example=EXAMPLE))
async def create_chat_completion(request: Request, service: Served) -> Response:
    options, body, asked = await read_asked(request, chat_request)
    model = service.expect_model(body.get("model"), adapters=True)
    asked = service.adapted(asked, model)
    about: Any = {"id": uuid.uuid4().hex, "created": int(time.time()), "model": model}
    tools = tool_use(body, service.tokenizer)
    if tools is not None:
        asked = replace(asked, params={**asked.params, **tools.params})
    about |= {"tools": tools}
    if options is not None:
        return await stream(request, service, asked, ChatChunks(body, options, service.tokenizer, **about))
    (output,) = await service.outputs(asked)
    return await whole(
        asked, lambda: chat_completion(body, service.answer(output), **about, cached=output.num_cached_tokens)
    )
