"""vLLM's /tokenize and /detokenize."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from pybatch.api.inputs import Conversation, expect_tokenizer, plain_messages
from pybatch.api.protocols.request_error import RequestError
from pybatch.api.protocols.token_requests import (
    TOKENIZE_ASKING_NOTHING,
    DetokenizeFields,
    TokenizeFields,
    detokenize_request,
    tokenize_request,
    tokenized,
)
from pybatch.model.text.tokenizer import Tokenizer
from pybatch.serve.bodies import read
from pybatch.serve.bounds import expect_few_messages
from pybatch.serve.openapi import body_schema, documented, object_with
from pybatch.serve.service import Served, Service

router = APIRouter()

TOKENIZE = body_schema(TokenizeFields, asking_nothing=TOKENIZE_ASKING_NOTHING)
DETOKENIZE = body_schema(DetokenizeFields)
TOKENS = object_with(count=int, max_model_len=int, tokens=list[int], token_strs=list[str] | None)
TEXT = object_with(prompt=str)


@router.post("/tokenize", **documented(TOKENIZE, answer=TOKENS, example={"prompt": "Hello", "return_token_strs": True}))
async def tokenize(request: Request, service: Served) -> Response:
    body, asked = await read(request, tokenize_request)
    expect_model(service, body)
    expect_few_messages(asked)

    def made() -> Response:
        tokenizer = expect_tokenizer(service.tokenizer)
        tokens = encoded(asked, body, tokenizer)
        texts = tokenizer.convert_ids_to_tokens(tokens) if body.get("return_token_strs") else None
        return JSONResponse(tokenized(tokens, texts, service.llm.engine.max_model_len))

    with fault_of("messages" if isinstance(asked, Conversation) else "prompt"):
        return await asyncio.to_thread(made)


@router.post("/detokenize", **documented(DETOKENIZE, answer=TEXT, example={"tokens": [1, 2, 3]}))
async def detokenize(request: Request, service: Served) -> Response:
    with fault_of("tokens"):
        tokenizer = expect_tokenizer(service.tokenizer)
        body, tokens = await read(request, lambda body: detokenize_request(body, tokenizer.vocab_size))
        expect_model(service, body)
        text = await asyncio.to_thread(tokenizer.decode, tokens, skip_special_tokens=False)
    return JSONResponse({"prompt": text})


def expect_model(service: Service, body: Mapping[str, Any]) -> None:
    """Here the model may be left out."""
    if body.get("model") is not None:
        service.expect_model(body["model"])


def encoded(asked: str | Conversation, body: Mapping[str, Any], tokenizer: Tokenizer) -> list[int]:
    if isinstance(asked, Conversation):
        return tokenizer.encode_chat(plain_messages(asked.messages), **asked.options)[1]
    (tokens,) = tokenizer.encode_batch([asked], body.get("add_special_tokens") is not False)
    return tokens


@contextmanager
def fault_of(name: str) -> Iterator[None]:
    """Where a tokenizer or a chat template fails because of this parameter."""
    try:
        yield
    except RequestError:
        raise
    except (ValueError, TypeError) as error:  # TypeError: a template's variable by the name of an argument
        raise RequestError(f"{name}: {error}", "invalid_value", name) from None
