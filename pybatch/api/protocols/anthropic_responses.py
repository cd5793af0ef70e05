"""Bodies of Anthropic's responses: messages and errors."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from pybatch.api.outcomes import Answer, Failure
from pybatch.api.protocols.tool_calls.call import ToolCall
from pybatch.api.protocols.tool_calls.use import ToolUse

ERROR_TYPES = {
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    409: "conflict_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
    529: "overloaded_error",
}
"""By HTTP status; any other one below 500 is an invalid_request_error, from 500 on an api_error."""


def message_response(
    body: Mapping[str, Any],
    answer: Answer,
    *,
    id: str,
    model: str,
    cached_tokens: int | None = None,
    tools: ToolUse | None = None,
) -> dict[str, Any]:
    """The response to a body that message_request has taken. id: without a prefix. model: the name to report.
    cached_tokens: as for `usage`. tools: how their calls are read; None: they stay text."""
    sample = answer.samples[0]
    blocks = content(sample.text, id, tools)
    called = any(block["type"] == "tool_use" for block in blocks)
    return {
        **message_start(id, model),
        "content": blocks,
        **ending(sample.finish_reason, sample.stop_reason, sample.tokens, body["max_tokens"], called=called),
        "usage": usage(answer.prompt_tokens, sample.tokens, cached_tokens),
    }


def content(text: str, id: str, tools: ToolUse | None) -> list[dict[str, Any]]:
    """The blocks of a text: runs of text and calls, at least one. id: of the message."""
    blocks: list[dict[str, Any]] = []
    calls = 0
    for part in [text] if tools is None else parts(text, tools):
        if isinstance(part, ToolCall):
            assert tools is not None
            blocks.append(call_block(part, tools, id, calls))
            calls += 1
        elif blocks and blocks[-1]["type"] == "text":
            blocks[-1]["text"] += part
        else:
            blocks.append(text_block(part))
    return blocks or [text_block("")]


def parts(text: str, tools: ToolUse) -> list[str | ToolCall]:
    reader = tools.reader()
    return [*reader.add(text), *reader.end()]


def text_block(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


def call_block(call: ToolCall, tools: ToolUse, id: str, number: int) -> dict[str, Any]:
    """number: of the calls of the message with that id."""
    name = tools.call(call, id, 0, number)["id"].replace("call_", "toolu_")
    return {"type": "tool_use", "id": name, "name": call.name, "input": json.loads(call.arguments)}


def message_start(id: str, model: str) -> dict[str, Any]:
    """A message before anything is in it."""
    return {
        "id": f"msg_{id}",
        "type": "message",
        "role": "assistant",
        "model": model,
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
    }


def usage(prompt_tokens: int, output_tokens: int, cached_tokens: int | None = None) -> dict[str, int]:
    """cached_tokens: those of the prompt that were found in the prefix cache. None where they are not told, as in the
    results of a batch: they depend on what ran before, and a result on its request alone."""
    if cached_tokens is None:
        return {"input_tokens": prompt_tokens, "output_tokens": output_tokens}
    return {
        "input_tokens": prompt_tokens - cached_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": cached_tokens,
        "output_tokens": output_tokens,
    }


def ending(
    finish_reason: str, stop: int | str | None, tokens: int, max_tokens: int, *, called: bool
) -> dict[str, str | None]:
    """Why a sample of so many tokens ended. called: a tool, or several."""
    reason, sequence = "end_turn", None
    if finish_reason == "length":
        reason = "max_tokens" if tokens >= max_tokens else "model_context_window_exceeded"
    elif isinstance(stop, str):
        reason, sequence = "stop_sequence", stop
    elif called:
        reason = "tool_use"
    return {"stop_reason": reason, "stop_sequence": sequence}


def error_type(status: int) -> str:
    return ERROR_TYPES.get(status, "invalid_request_error" if status < 500 else "api_error")


def error_response(failure: Failure, *, status: int, id: str) -> dict[str, Any]:
    """The body of a response with such an HTTP status. id: of the request, without a prefix."""
    error = {"type": error_type(status), "message": failure.message}
    return {"type": "error", "error": error, "request_id": f"req_{id}"}
