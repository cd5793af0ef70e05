"""Bodies of Anthropic's requests for messages."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Required, TypedDict

from pybatch.api.inputs import Conversation
from pybatch.api.protocols.anthropic_messages import read_messages, read_tools
from pybatch.api.protocols.fields import expect_fields, expect_given, expect_type, flag
from pybatch.api.protocols.generation import Generation
from pybatch.api.protocols.request_error import RequestError
from pybatch.api.protocols.response_format import constraint_name, output_structure
from pybatch.api.protocols.sampling import expect_params
from pybatch.api.protocols.tool_calls.choice import expect_choice, is_forced
from pybatch.api.vllm_names import ANYTHING
from pybatch.engine.standing import Standing

SAMPLING = {"temperature": "temperature", "top_p": "top_p", "top_k": "top_k", "stop_sequences": "stop"}
"""Fields that SamplingParams has too, with their names there."""


class PromptFields(TypedDict, total=False):
    """Of a body for /v1/messages/count_tokens."""

    model: Required[str]
    messages: Required[list[dict[str, Any]]]
    system: str | list[dict[str, Any]] | None
    tools: list[dict[str, Any]] | None
    tool_choice: dict[str, Any] | None
    output_config: dict[str, Any] | None
    output_format: dict[str, Any] | None


class MessageFields(PromptFields, total=False):
    """Of a body for /v1/messages."""

    max_tokens: Required[int]
    temperature: float | None
    top_p: float | None
    top_k: int | None
    stop_sequences: list[str] | None
    stream: bool | None


# By name, the values that change no answer; every other value is refused.
PROMPT_ASKING_NOTHING: dict[str, Collection[Any]] = {
    **dict.fromkeys(("cache_control", "speed"), ANYTHING),
    "thinking": ({"type": "disabled"},),
}
ASKING_NOTHING: dict[str, Collection[Any]] = {
    **PROMPT_ASKING_NOTHING,
    **dict.fromkeys(("metadata", "service_tier", "inference_geo"), ANYTHING),
    "container": (),
    "diagnostics": (),
}


def message_request(body: Any) -> Generation:
    """Of a body for /v1/messages. Raises RequestError."""
    expect_fields(body, MessageFields.__annotations__.keys(), ASKING_NOTHING)
    flag(body, "stream")
    params = {"n": 1, "max_tokens": expect_given(body, "max_tokens")}
    params.update({ours: body[name] for name, ours in SAMPLING.items() if body.get(name) is not None})
    expect_type("max_tokens", params["max_tokens"], int, "an integer of at least 1")
    for text in expect_type("stop_sequences", params.get("stop", []), list, "a list of texts"):
        if not expect_type("stop_sequences", text, str, "a list of texts"):
            raise RequestError("stop_sequences: expected texts that are not empty", "invalid_value", "stop_sequences")
    if expect_type("temperature", params.get("temperature", 1), (int, float), "a number from 0 to 1") > 1:
        raise RequestError(
            f"temperature: expected a number from 0 to 1, got {params['temperature']}", "invalid_value", "temperature"
        )
    params |= output_structure(body)
    expect_params(params)
    prompt = conversation(body)
    named = "tools" if is_forced(tool_fields(body).get("tool_choice")) else constraint_name(body)
    names = {"structured_outputs": named, "stop": "stop_sequences"}
    return Generation((prompt,), params, Standing(user=user(body)), names)


def user(body: Mapping[str, Any]) -> str | None:
    """In whose name it asks, if it says so."""
    metadata = body.get("metadata")
    id = metadata.get("user_id") if isinstance(metadata, Mapping) else None
    return id if isinstance(id, str) and id else None


def count_request(body: Any) -> Conversation:
    """Of a body for /v1/messages/count_tokens: the prompt that message_request makes of these fields. Raises
    RequestError."""
    expect_fields(body, PromptFields.__annotations__.keys(), PROMPT_ASKING_NOTHING)
    return conversation(body)


def conversation(body: Mapping[str, Any]) -> Conversation:
    messages = read_messages(body.get("system"), expect_given(body, "messages"))
    options: dict[str, Any] = {}
    tools = offered_tools(body)
    if tools:
        options["tools"] = tools
    expect_choice({"tools": tools, **tool_fields(body)})
    last = messages[-1]
    if last["role"] == "assistant":
        if not last["content"]:
            said = "messages: expected text in the last one, since it is the assistant's and is gone on with"
            raise RequestError(said, "invalid_value", "messages")
        options["continue_final_message"] = True
    return Conversation(messages, options)


def offered_tools(body: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Those that the model may call."""
    tools = [] if body.get("tools") is None else read_tools(body["tools"])
    choice = body.get("tool_choice")
    if choice is None:
        return tools
    expect_type("tool_choice", choice, Mapping, "an object")
    kind = choice.get("type")
    if kind not in ("auto", "any", "tool", "none"):
        expected = "expected the type 'auto', 'any', 'tool' or 'none'"
        raise RequestError(f"tool_choice: {expected}, got {kind!r:.80}", "invalid_value", "tool_choice")
    if kind == "tool":
        expect_type("tool_choice.name", choice.get("name"), str, "text")
    flag(choice, "disable_parallel_tool_use")
    return [] if kind == "none" else tools


def as_chat(body: Mapping[str, Any], asked: Generation) -> dict[str, Any]:
    """The body of OpenAI's that asks for the same of tools. asked: what message_request has made of this one."""
    (prompt,) = asked.prompts
    assert isinstance(prompt, Conversation)
    return {"messages": prompt.messages, **prompt.options, **tool_fields(body)}


def tool_fields(body: Mapping[str, Any]) -> dict[str, Any]:
    """OpenAI's for a tool_choice that is proper."""
    choice = body.get("tool_choice") or {"type": "auto"}
    fields: dict[str, Any] = {"parallel_tool_calls": not choice.get("disable_parallel_tool_use")}
    if choice["type"] == "any":
        fields["tool_choice"] = "required"
    elif choice["type"] == "tool":
        fields["tool_choice"] = {"type": "function", "function": {"name": choice["name"]}}
    return fields
