"""OpenAI's /v1/chat/completions."""

from __future__ import annotations

import time
import uuid

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from pybatch.api.protocols.openai_requests import chat_request
from pybatch.api.protocols.openai_responses import chat_completion
from pybatch.serve.bodies import read_json
from pybatch.serve.service import Served

router = APIRouter()


@router.post("/v1/chat/completions")
async def create_chat_completion(request: Request, service: Served) -> Response:
    body = await read_json(request)
    asked = chat_request(body)
    model = service.expect_model(body.get("model"))
    (answer,) = await service.answers(asked)
    return JSONResponse(chat_completion(body, answer, id=uuid.uuid4().hex, created=int(time.time()), model=model))
