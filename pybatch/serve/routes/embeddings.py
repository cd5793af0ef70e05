"""OpenAI's /v1/embeddings, and vLLM's /score and /rerank."""

from __future__ import annotations

import asyncio
import time
import uuid
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from pybatch.api.protocols.embeddings import (
    ASKING_NOTHING,
    EmbeddingFields,
    RerankFields,
    ScoreFields,
    embedding_request,
    embedding_response,
    pooling,
    rerank_request,
    rerank_response,
    score_request,
    score_response,
)
from pybatch.api.protocols.openai_requests import standing
from pybatch.serve.bodies import read_json
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
    body = await read_json(request)
    asked = embedding_request(body)
    model = service.expect_model(body.get("model"))
    answers = await service.answers(asked)
    return await asyncio.to_thread(lambda: JSONResponse(embedding_response(body, answers, model=model)))


@router.post("/score", **SCORE)
@router.post("/v1/score", **SCORE)
async def create_score(request: Request, service: Served) -> Response:
    body = await read_json(request)
    queries, documents = score_request(body)
    about: Any = {"id": uuid.uuid4().hex, "created": int(time.time()), "model": service.expect_model(body.get("model"))}
    truncate = pooling(body).truncate_prompt_tokens
    outputs = await service.scores(list(zip(queries, documents, strict=True)), standing(body), truncate)
    scores = [output.outputs.score for output in outputs]
    return JSONResponse(score_response(scores, sum(len(each.prompt_token_ids) for each in outputs), **about))


@router.post("/rerank", **RERANK)
@router.post("/v1/rerank", **RERANK)
@router.post("/v2/rerank", **RERANK)
async def rerank(request: Request, service: Served) -> Response:
    body = await read_json(request)
    query, documents = rerank_request(body)
    about: Any = {"id": uuid.uuid4().hex, "model": service.expect_model(body.get("model"))}
    truncate = pooling(body).truncate_prompt_tokens
    outputs = await service.scores([(query, document) for document in documents], standing(body), truncate)
    scores = [output.outputs.score for output in outputs]
    tokens = sum(len(each.prompt_token_ids) for each in outputs)
    return JSONResponse(rerank_response(body, documents, scores, tokens, **about))
