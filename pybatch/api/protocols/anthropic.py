"""Bodies of Anthropic's requests and responses for messages."""

from __future__ import annotations

import reprlib
from collections.abc import Collection, Mapping
from typing import Any

from pybatch.api.inputs import Conversation
from pybatch.api.outcomes import Answer, Failure, Sample
from pybatch.api.protocols.fields import expect_fields, expect_given, expect_type
from pybatch.api.protocols.generation import Generation
from pybatch.api.protocols.messages import expect_messages, expect_unicode
from pybatch.api.protocols.request_error import RequestError
from pybatch.api.protocols.sampling import expect_params
from pybatch.api.vllm_names import ANYTHING

ROLES = ("user", "assistant", "system")
KNOWN = {"model", "max_tokens", "messages", "system", "stop_sequences", "temperature", "top_k", "top_p"}
ASKING_NOTHING: dict[str, Collection[Any]] = {  # by name, the values that change no answer
    **dict.fromkeys(("metadata", "service_tier", "cache_control", "inference_geo", "speed"), ANYTHING),
    "stream": (False,),
    "thinking": ({"type": "disabled"},),
    "tools": ([],),
    "tool_choice": ({"type": "auto"}, {"type": "none"}),
    "output_config": ({},),
    "container": (),
    "diagnostics": (),
}


def message_request(body: Any) -> Generation:
    """Of a body for /v1/messages. Raises RequestError."""
    expect_fields(body, KNOWN, ASKING_NOTHING)
    params = {"n": 1, "max_tokens": expect_given(body, "max_tokens")}
    for name, ours in (
        ("temperature", "temperature"),
        ("top_p", "top_p"),
        ("top_k", "top_k"),
        ("stop_sequences", "stop"),
    ):
        if body.get(name) is not None:
            params[ours] = body[name]
    expect_type("max_tokens", params["max_tokens"], int, "an integer of at least 1")
    for text in expect_type("stop_sequences", params.get("stop", []), list, "a list of texts"):
        if not expect_type("stop_sequences", text, str, "a list of texts"):
            raise RequestError("stop_sequences: expected texts that are not empty", "invalid_value", "stop_sequences")
    if expect_type("temperature", params.get("temperature", 1), (int, float), "a number from 0 to 1") > 1:
        raise RequestError(
            f"temperature: expected a number from 0 to 1, got {params['temperature']}", "invalid_value", "temperature"
        )
    expect_params(params)
    messages = [*system_messages(body.get("system")), *turns(expect_given(body, "messages"))]
    unfinished = messages[-1]["role"] == "assistant"
    return Generation((Conversation(messages, {"continue_final_message": True} if unfinished else {}),), params)


def system_messages(system: Any) -> list[dict[str, str]]:
    if system is None or system == "" or system == []:
        return []
    text = content_text("system", system)
    return [{"role": "system", "content": text}]


def turns(messages: Any) -> list[dict[str, str]]:
    """The messages with text as content. Those of one role that follow each other are one turn, as Anthropic has it."""
    joined: list[dict[str, str]] = []
    for number, message in enumerate(expect_messages(messages, roles=ROLES)):
        text = content_text(f"messages[{number}].content", message["content"])
        if joined and joined[-1]["role"] == message["role"]:
            joined[-1]["content"] += "\n" + text
        else:
            joined.append({"role": message["role"], "content": text})
    return joined


def content_text(where: str, content: Any) -> str:
    """Of text, or of blocks of text."""
    blocks = content if isinstance(content, list) else [{"type": "text", "text": content}]
    for block in blocks:
        if not isinstance(block, Mapping) or block.get("type") != "text" or not isinstance(block.get("text"), str):
            raise RequestError(
                f"{where}: expected text or blocks of type 'text', got {reprlib.repr(block)}", "invalid_value", where
            )
    text = "\n".join(block["text"] for block in blocks)
    expect_unicode(where, text)
    return text


def message_response(body: Mapping[str, Any], answer: Answer, *, id: str, model: str) -> dict[str, Any]:
    """The response to a body that message_request has taken. id: without a prefix. model: the name to report."""
    sample = answer.samples[0]
    reason, sequence = stop_reason(sample, body["max_tokens"])
    return {
        "id": f"msg_{id}",
        "type": "message",
        "role": "assistant",
        "model": model,
        "content": [{"type": "text", "text": sample.text}],
        "stop_reason": reason,
        "stop_sequence": sequence,
        "usage": {"input_tokens": answer.prompt_tokens, "output_tokens": sample.tokens},
    }


def stop_reason(sample: Sample, max_tokens: int) -> tuple[str, str | None]:
    """With the stop sequence, if one ended the sample."""
    if sample.finish_reason == "length":
        return ("max_tokens" if sample.tokens >= max_tokens else "model_context_window_exceeded"), None
    if isinstance(sample.stop_reason, str):
        return "stop_sequence", sample.stop_reason
    return "end_turn", None


def error_response(failure: Failure, *, id: str) -> dict[str, Any]:
    """The body of a response with a status of 400 or above. id: of the request, without a prefix."""
    kind = "api_error" if failure.code == "server_error" else "invalid_request_error"
    return {"type": "error", "error": {"type": kind, "message": failure.message}, "request_id": f"req_{id}"}
