"""OpenAI's /v1/embeddings, and vLLM's /score and /rerank."""

from __future__ import annotations

import asyncio
import time
import uuid

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from pybatch.api.protocols.embeddings import (
    ASKING_NOTHING,
    EmbeddingFields,
    RerankFields,
    ScoreFields,
    embedding_request,
    embedding_response,
    rerank_request,
    rerank_response,
    score_request,
    score_response,
)
from pybatch.serve.bodies import read
from pybatch.serve.openapi import body_schema, documented, object_with
from pybatch.serve.service import Served

router = APIRouter()

EMBEDDING = documented(
    body_schema(EmbeddingFields, asking_nothing=ASKING_NOTHING),
    answer=object_with(object=str, data=list, model=str, usage=dict),
    example={"model": "MODEL", "input": ["Once upon a time"]},
)
SCORE = documented(
    body_schema(ScoreFields, asking_nothing=ASKING_NOTHING),
    answer=object_with(id=str, object=str, created=int, model=str, data=list, usage=dict),
    example={"model": "MODEL", "text_1": "What is it?", "text_2": ["This.", "That."]},
)
RERANK = documented(
    body_schema(RerankFields, asking_nothing=ASKING_NOTHING),
    answer=object_with(id=str, model=str, results=list, usage=dict),
    example={"model": "MODEL", "query": "What is it?", "documents": ["This.", "That."]},
)


@router.post("/v1/embeddings", **EMBEDDING)
async def create_embedding(request: Request, service: Served) -> Response:
    body, asked = await read(request, embedding_request)
    model = service.expect_model(body.get("model"))
    answer = await service.pooled(asked)
    return await asyncio.to_thread(lambda: JSONResponse(embedding_response(body, answer, model=model)))


@router.post("/score", **SCORE)
@router.post("/v1/score", **SCORE)
async def create_score(request: Request, service: Served) -> Response:
    body, asked = await read(request, score_request)
    created = int(time.time())
    model = service.expect_model(body.get("model"))
    answer = await service.pooled(asked)
    return JSONResponse(score_response(answer, id=uuid.uuid4().hex, created=created, model=model))


@router.post("/rerank", **RERANK)
@router.post("/v1/rerank", **RERANK)
@router.post("/v2/rerank", **RERANK)
async def rerank(request: Request, service: Served) -> Response:
    body, asked = await read(request, rerank_request)
    model = service.expect_model(body.get("model"))
    answer = await service.pooled(asked)
    return JSONResponse(rerank_response(body, answer, id=uuid.uuid4().hex, model=model))
