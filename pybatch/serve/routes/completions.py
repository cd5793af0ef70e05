"""OpenAI's /v1/completions."""

from __future__ import annotations

import time
import uuid
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from pybatch.api.inputs import expect_tokenizer
from pybatch.api.protocols.echo import echo_of
from pybatch.api.protocols.openai_chunks import CompletionChunks
from pybatch.api.protocols.openai_requests import (
    COMPLETION_ASKING_NOTHING,
    SAMPLING,
    CompletionFields,
    StreamFields,
    completion_request,
)
from pybatch.api.protocols.openai_responses import Echo, text_completion
from pybatch.serve.openai_answers import read_asked, stream, whole
from pybatch.serve.openapi import body_schema, documented, object_with
from pybatch.serve.service import Served

router = APIRouter()

BODY = body_schema(CompletionFields, StreamFields, sampling=SAMPLING, asking_nothing=COMPLETION_ASKING_NOTHING)
ANSWER = object_with(id=str, object=str, created=int, model=str, choices=list, usage=dict)
EXAMPLE = {"model": "MODEL", "prompt": "Once upon a time", "max_tokens": 16}


@router.post("/v1/completions", **documented(BODY, answer=ANSWER, streams=True, example=EXAMPLE))
async def create_completion(request: Request, service: Served) -> Response:
    options, body, asked = await read_asked(request, completion_request)
    model = service.expect_model(body.get("model"), adapters=True)
    asked = service.adapted(asked, model)
    about: Any = {"id": uuid.uuid4().hex, "created": int(time.time()), "model": model}
    if options is not None:
        return await stream(
            request, service, asked, CompletionChunks(body, asked.prompts, options, service.tokenizer, **about)
        )
    outputs = await service.outputs(asked)

    def made() -> dict[str, Any]:
        echoes: list[Echo] = []
        if body.get("echo"):
            tokenizer = expect_tokenizer(service.tokenizer)
            pairs = zip(asked.prompts, outputs, strict=True)
            echoes = [echo_of(body, prompt, output, tokenizer) for prompt, output in pairs]
        cached = sum(output.num_cached_tokens for output in outputs)
        return text_completion(body, list(map(service.answer, outputs)), **about, echoes=echoes, cached=cached)

    return await whole(asked, made)
