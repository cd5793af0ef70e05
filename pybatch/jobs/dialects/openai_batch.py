"""OpenAI's batch files: a request to an endpoint on each line, and its response on a line of the results."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from pybatch.api.inputs import Prompt
from pybatch.api.lora_names import adapter_params
from pybatch.api.outcomes import Answer, Failure, Outcome, parts_of
from pybatch.api.protocols.embeddings import (
    embedding_request,
    embedding_response,
    rerank_request,
    rerank_response,
    score_request,
    score_response,
)
from pybatch.api.protocols.fields import expect_given, expect_type
from pybatch.api.protocols.generation import Generation
from pybatch.api.protocols.openai_requests import chat_request, completion_request
from pybatch.api.protocols.openai_responses import chat_completion, error_body, text_completion
from pybatch.api.protocols.request_error import RequestError
from pybatch.api.protocols.tool_calls.use import tool_use
from pybatch.engine.lora_request import LoRARequest
from pybatch.jobs.dialect import RowRequest
from pybatch.jobs.rows import Row

CHAT_URL, COMPLETIONS_URL, EMBEDDINGS_URL = "/v1/chat/completions", "/v1/completions", "/v1/embeddings"
SCORE_URLS, RERANK_URLS = ("/v1/score", "/score"), ("/v1/rerank", "/rerank", "/v2/rerank")
POOLING_URLS = (EMBEDDINGS_URL, *SCORE_URLS, *RERANK_URLS)
ENDPOINTS: dict[str, Callable[[Any], Generation]] = {
    CHAT_URL: chat_request,
    COMPLETIONS_URL: completion_request,
    EMBEDDINGS_URL: embedding_request,
    **dict.fromkeys(SCORE_URLS, score_request),
    **dict.fromkeys(RERANK_URLS, rerank_request),
}

CANCELLED, EXPIRED = "batch_cancelled", "batch_expired"
"""Codes of rows that their batch ended without."""

NO_REQUEST = ("invalid_json_line", "duplicate_custom_id", "invalid_method", "invalid_url", CANCELLED, EXPIRED)
"""Codes of lines that never became a request to an endpoint, so that no response is written for them."""


def spoils_batch(failure: Failure) -> bool:
    """Whether OpenAI refuses the whole batch for such a line, before anything runs: what is wrong is not in the body,
    or it is the model."""
    of_line = ("custom_id", "method", "url", "body", "model")
    return failure.code in (*NO_REQUEST, "mismatched_model") or failure.param in of_line


@dataclass(frozen=True)
class OpenAIBatch:
    """Rows of custom_id, method, url and body.

    created: when the job began, in seconds since 1970, the same however often it is resumed. model: that all rows must
    name; None: whatever each names. url: that all rows must ask; None: one of ENDPOINTS. served: names of models, one
    of which rows must name; None: there is one model, whatever they call it.

    A request that is refused has the response that HTTP would have brought, with the status 400 and what is wrong. A
    line that is no request has no response, but an "error".
    """

    name: ClassVar[str] = "openai-batch"
    apart: ClassVar[bool] = True
    extends_rows: ClassVar[bool] = False

    created: int
    model: str | None = None
    url: str | None = None
    served: tuple[str, ...] | None = None
    adapters: Mapping[str, LoRARequest] = field(default_factory=dict)

    def request(self, row: Row) -> RowRequest:
        if row.error is not None:
            raise RequestError(row.error, "invalid_json_line")
        fields = row.fields
        custom_id = expect_type("custom_id", expect_given(fields, "custom_id"), str, "text")
        if expect_given(fields, "method") != "POST":
            raise RequestError(f"method: expected 'POST', got {fields['method']!r:.80}", "invalid_method", "method")
        url, body = expect_given(fields, "url"), expect_given(fields, "body")
        if not isinstance(url, str) or url not in ENDPOINTS:
            raise RequestError(f"url: expected {' or '.join(ENDPOINTS)}, got {url!r:.80}", "invalid_url", "url")
        if self.url not in (None, url):
            raise RequestError(f"url: expected {self.url!r}, the batch's endpoint, got {url!r}", "invalid_url", "url")
        asked = ENDPOINTS[url](body)
        self.expect_model(body.get("model"))
        if body.get("echo"):
            expect_plain_echo(asked.prompts, body)
        tools = tool_use(body, None) if url == CHAT_URL else None
        adapter = adapter_params(body["model"], self.adapters)
        if adapter and asked.pooling is not None:
            said = f"model: expected the model itself for {url}, got {body['model']!r}, an adapter"
            raise RequestError(said, "invalid_value", "model")
        params = {**asked.params, **(tools.params if tools else {}), **adapter}
        return RowRequest(asked.prompts, params, custom_id, asked.standing, asked.pooling, asked.pairs, asked.names)

    def expect_model(self, model: Any) -> None:
        if model is None:
            raise RequestError("model: missing", "missing_required_parameter", "model")
        expect_served(expect_type("model", model, str, "text"), self.served, self.adapters)
        if model in self.adapters:
            return
        if self.model is not None and model != self.model:
            raise RequestError(f"model: expected {self.model!r} as in the first row, got {model!r}", "mismatched_model")

    def prepared(self, rows: Iterator[Row], *, wait: bool) -> Iterator[Row]:
        return rows

    def result(self, row: Row, outcome: Outcome, *, fields: bool = True) -> dict[str, Any]:
        id = row_id(row)
        custom_id, body = row.fields.get("custom_id"), row.fields.get("body")
        response: dict[str, Any] | None = None
        error = None
        if isinstance(outcome, Answer):
            response = {"status_code": 200, "request_id": id, "body": self.body(row, outcome, id)}
        else:
            told = replace(outcome, message=f"{row.place}: {outcome.message}")
            if isinstance(custom_id, str) and isinstance(body, dict) and outcome.code not in NO_REQUEST:
                response = {"status_code": status(outcome), "request_id": id, "body": error_body(told)}
            else:
                error = {"code": told.code, "message": told.message}
        return {"id": f"batch_req_{id}", "custom_id": custom_id, "response": response, "error": error}

    def body(self, row: Row, answer: Answer, id: str) -> dict[str, Any]:
        body, url = row.fields["body"], row.fields["url"]
        if url == CHAT_URL:
            tools = tool_use(body, None)
            return chat_completion(body, answer, id=id, created=self.created, model=body["model"], tools=tools)
        if url == EMBEDDINGS_URL:
            return embedding_response(body, answer, model=body["model"])
        if url in SCORE_URLS:
            return score_response(answer, id=id, created=self.created, model=body["model"])
        if url in RERANK_URLS:
            return rerank_response(body, answer, id=id, model=body["model"])
        return text_completion(body, parts_of(answer), id=id, created=self.created, model=body["model"])


def expect_plain_echo(prompts: Sequence[Prompt], body: Mapping[str, Any]) -> None:
    """Raises RequestError for an echo that cannot be written without the tokenizer."""
    if not all(isinstance(prompt, str) for prompt in prompts):
        raise RequestError("echo: not supported in batches for token ids", "unsupported_parameter", "echo")
    if body.get("logprobs") is not None:
        raise RequestError("echo: not supported in batches with logprobs", "unsupported_parameter", "echo")


def expect_served(model: str, served: tuple[str, ...] | None, adapters: Mapping[str, LoRARequest]) -> None:
    """served, adapters: as OpenAIBatch's."""
    if served is not None and model not in served and model not in adapters:
        known = " or ".join(map(repr, (*served, *adapters)))
        raise RequestError(f"model: expected {known}, got {model!r:.80}", "model_not_found", "model")


def status(failure: Failure) -> int:
    return {"server_error": 500, "model_not_found": 404}.get(failure.code, 400)


def row_id(row: Row) -> str:
    """The same for a row whenever it is run."""
    name = f"{row.index}:{row.fields.get('custom_id')}"
    return hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()
