"""OpenAI's embeddings, and vLLM's scores and rerankings (Jina's and Cohere's): bodies of requests and of responses."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, Required

import numpy as np

from pybatch.api.outcomes import Answer, parts_of
from pybatch.api.pairs import Pair
from pybatch.api.protocols.fields import expect_fields, expect_given, expect_type, flag
from pybatch.api.protocols.generation import Generation
from pybatch.api.protocols.messages import expect_unicode
from pybatch.api.protocols.openai_requests import StandingFields, read_prompts, standing
from pybatch.api.protocols.request_error import RequestError
from pybatch.engine.pooling_params import PoolingParams, PoolingTask

ENCODINGS = ("float", "base64")
ASKING_NOTHING = {"add_special_tokens": (True,), "softmax": (), "activation": ()}


class EmbeddingFields(StandingFields, total=False):
    """Of a body for /v1/embeddings."""

    model: Required[str]
    input: Required[str | list[str] | list[int] | list[list[int]]]
    encoding_format: Literal["float", "base64"] | None
    dimensions: int | None
    # vLLM's
    truncate_prompt_tokens: int | None
    normalize: bool | None


class ScoreFields(StandingFields, total=False):
    """Of a body for /score: queries and documents by any of vLLM's names for them."""

    model: Required[str]
    text_1: str | list[str] | None
    text_2: str | list[str] | None
    queries: str | list[str] | None
    documents: str | list[str] | None
    truncate_prompt_tokens: int | None


class RerankFields(StandingFields, total=False):
    """Of a body for /rerank."""

    model: Required[str]
    query: Required[str]
    documents: Required[list[str]]
    top_n: int | None
    return_documents: bool | None
    truncate_prompt_tokens: int | None


def embedding_request(body: Any) -> Generation:
    """Of a body for /v1/embeddings, which may hold several inputs. Raises RequestError."""
    expect_fields(body, EmbeddingFields.__annotations__.keys() | StandingFields.__annotations__.keys(), ASKING_NOTHING)
    prompts = read_prompts(expect_given(body, "input"), "input")
    encoding = body.get("encoding_format")
    if encoding is not None and encoding not in ENCODINGS:
        said = f"encoding_format: expected {' or '.join(map(repr, ENCODINGS))}, got {encoding!r:.80}"
        raise RequestError(said, "invalid_value", "encoding_format")
    asked = pooling(body, "dimensions", "normalize")
    return Generation(prompts, {}, standing(body), {"prompt": "input"}, asked)


def pooling(body: Mapping[str, Any], *names: str, task: PoolingTask = "embed") -> PoolingParams:
    given = {name: body[name] for name in ("truncate_prompt_tokens", *names) if body.get(name) is not None}
    try:
        return PoolingParams(task=task, **given)
    except ValueError as error:
        raise RequestError(str(error), "invalid_value", str(error).partition(":")[0]) from None


def embedding_response(body: Mapping[str, Any], answer: Answer, *, model: str) -> dict[str, Any]:
    """The response to a body that embedding_request has taken, with a part of the answer for each of its inputs."""
    as_text = body.get("encoding_format") == "base64"
    data = [
        {"object": "embedding", "index": index, "embedding": in_base64(each) if as_text else list(each)}
        for index, each in enumerate(part.pooled or () for part in parts_of(answer))
    ]
    return {"object": "list", "data": data, "model": model, "usage": usage(answer.prompt_tokens)}


def in_base64(embedding: Sequence[float]) -> str:
    """As float32, little-endian."""
    return base64.b64encode(np.array(embedding, "<f4").tobytes()).decode()


def usage(tokens: int) -> dict[str, int]:
    return {"prompt_tokens": tokens, "total_tokens": tokens}


def score_request(body: Any) -> Generation:
    """Of a body for /score: one query goes with each document, or as many as there are. Raises RequestError."""
    expect_fields(body, ScoreFields.__annotations__.keys() | StandingFields.__annotations__.keys(), ASKING_NOTHING)
    first = "queries" if body.get("queries") is not None else "text_1"
    second = "documents" if body.get("documents") is not None else "text_2"
    queries, documents = texts(body, first), texts(body, second)
    if len(queries) == 1:
        queries *= len(documents)
    if len(queries) != len(documents):
        said = f"{first}: expected one text, or one for each of {len(documents)}, got {len(queries)}"
        raise RequestError(said, "invalid_value", first)
    return scoring(body, map(Pair, queries, documents), second)


def rerank_request(body: Any) -> Generation:
    """Of a body for /rerank. Raises RequestError."""
    expect_fields(body, RerankFields.__annotations__.keys() | StandingFields.__annotations__.keys(), ASKING_NOTHING)
    query: str = expect_type("query", expect_given(body, "query"), str, "text")
    expect_unicode("query", query)
    flag(body, "return_documents")
    if body.get("top_n") is not None and expect_type("top_n", body["top_n"], int, "an integer") < 0:
        raise RequestError(f"top_n: expected at least 0, got {body['top_n']}", "invalid_value", "top_n")
    return scoring(body, (Pair(query, document) for document in texts(body, "documents")), "documents")


def scoring(body: Mapping[str, Any], pairs: Iterable[Pair], name: str) -> Generation:
    """name: of the documents."""
    asked = pooling(body, task="score")
    return Generation((), {}, standing(body), {"prompt": name}, asked, tuple(pairs))


def texts(body: Mapping[str, Any], name: str) -> list[str]:
    value = expect_given(body, name)
    listed: list[str] = [value] if isinstance(value, str) else expect_type(name, value, list, "text or a list of texts")
    if not listed:
        raise RequestError(f"{name}: expected at least one, got []", "invalid_value", name)
    for each in listed:
        expect_unicode(name, expect_type(name, each, str, "text or a list of texts"))
    return listed


def scores_of(answer: Answer) -> list[float]:
    """Of the pairs of a request."""
    return [score for part in parts_of(answer) for score in part.pooled or ()]


def score_response(answer: Answer, *, id: str, created: int, model: str) -> dict[str, Any]:
    """The response to a body that score_request has taken."""
    data = [{"index": index, "object": "score", "score": score} for index, score in enumerate(scores_of(answer))]
    head = {"id": f"score-{id}", "object": "list", "created": created, "model": model}
    return {**head, "data": data, "usage": usage(answer.prompt_tokens)}


def rerank_response(body: Mapping[str, Any], answer: Answer, *, id: str, model: str) -> dict[str, Any]:
    """The response to a body that rerank_request has taken: the best first, and of equal ones the first; top_n of them,
    0 for all."""
    documents, scores = texts(body, "documents"), scores_of(answer)
    order = sorted(range(len(scores)), key=lambda index: -scores[index])
    results: list[dict[str, Any]] = []
    for index in order[: body.get("top_n") or None]:
        document = {} if body.get("return_documents") is False else {"document": {"text": documents[index]}}
        results.append({"index": index, **document, "relevance_score": scores[index]})
    return {"id": f"rerank-{id}", "model": model, "results": results, "usage": usage(answer.prompt_tokens)}
