"""Anthropic's message batches: the parameters of a message on each line, and its result on a line of the results."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from pybatch.api.lora_names import adapter_params
from pybatch.api.outcomes import Answer, Outcome
from pybatch.api.protocols.anthropic_requests import as_chat, message_request
from pybatch.api.protocols.anthropic_responses import error_response, message_response
from pybatch.api.protocols.fields import expect_given, expect_type, flag
from pybatch.api.protocols.request_error import RequestError
from pybatch.api.protocols.tool_calls.use import tool_use
from pybatch.engine.lora_request import LoRARequest
from pybatch.jobs.dialect import RowRequest
from pybatch.jobs.dialects.openai_batch import CANCELLED, EXPIRED, expect_served, row_id, status
from pybatch.jobs.rows import Row

NOT_RUN = {CANCELLED: "canceled", EXPIRED: "expired"}


@dataclass(frozen=True)
class AnthropicBatch:
    """Rows of custom_id and params. A row that fails has its result among the others, of type "errored", or "canceled"
    and "expired" where its batch ended without it.

    served, adapters: as OpenAIBatch's.
    """

    name: ClassVar[str] = "anthropic-batch"
    apart: ClassVar[bool] = False
    extends_rows: ClassVar[bool] = False

    served: tuple[str, ...] | None = None
    adapters: Mapping[str, LoRARequest] = field(default_factory=dict)

    def request(self, row: Row) -> RowRequest:
        if row.error is not None:
            raise RequestError(row.error, "invalid_json_line")
        custom_id = expect_type("custom_id", expect_given(row.fields, "custom_id"), str, "text")
        params = expect_type("params", expect_given(row.fields, "params"), dict, "an object")
        asked = message_request(params)
        if flag(params, "stream"):
            raise RequestError("stream: not supported in a batch; expected false", "unsupported_parameter", "stream")
        model = expect_type("model", expect_given(params, "model"), str, "text")
        expect_served(model, self.served, self.adapters)
        tools = tool_use(as_chat(params, asked), None)
        given = {**asked.params, **(tools.params if tools else {}), **adapter_params(model, self.adapters)}
        return RowRequest(asked.prompts, given, custom_id, asked.standing, names=asked.names)

    def prepared(self, rows: Iterator[Row], *, wait: bool) -> Iterator[Row]:
        return rows

    def result(self, row: Row, outcome: Outcome, *, fields: bool = True) -> dict[str, Any]:
        id, params = row_id(row), row.fields.get("params")
        result: dict[str, Any]
        if isinstance(outcome, Answer):
            assert params is not None
            tools = tool_use(as_chat(params, message_request(params)), None) if params.get("tools") else None
            message = message_response(params, outcome, id=id, model=params["model"], tools=tools)
            result = {"type": "succeeded", "message": message}
        elif outcome.code in NOT_RUN:
            result = {"type": NOT_RUN[outcome.code]}
        else:
            told = replace(outcome, message=f"{row.place}: {outcome.message}")
            result = {"type": "errored", "error": error_response(told, status=status(outcome), id=id)}
        custom_id = row.fields.get("custom_id")
        return {"custom_id": custom_id if isinstance(custom_id, str) else "", "result": result}
