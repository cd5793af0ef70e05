from __future__ import annotations

from typing import Any

import pytest

from pybatch.api.inputs import Conversation
from pybatch.api.protocols.anthropic_requests import count_request, message_request, tool_fields
from pybatch.api.protocols.request_error import RequestError

USER = [{"role": "user", "content": "Hello"}]
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}}
TOOL = {"name": "weather", "description": "Of a city.", "input_schema": SCHEMA, "cache_control": {"type": "ephemeral"}}
CALL = {"type": "tool_use", "id": "toolu_1", "name": "weather", "input": {"city": "Oslo"}}
RESULT = {"type": "tool_result", "tool_use_id": "toolu_1", "content": [{"type": "text", "text": "rain"}]}


def asked(**body: Any) -> Any:
    return message_request({"model": "m", "max_tokens": 8, "messages": USER, **body})


def conversation(**body: Any) -> Any:
    (prompt,) = asked(**body).prompts
    return prompt


def test_a_message_and_its_sampling() -> None:
    assert (asked(metadata={"user_id": "u"}).standing.user, asked(metadata={"user_id": 3}).standing.user) == ("u", None)
    request = asked(stop_sequences=["a"], temperature=0.5, top_p=0.9, top_k=4, metadata={"user_id": "u"}, stream=False)
    assert request.prompts == (Conversation(USER),)
    assert request.params == {"n": 1, "max_tokens": 8, "stop": ["a"], "temperature": 0.5, "top_p": 0.9, "top_k": 4}
    assert asked(thinking={"type": "disabled"}, tools=[], tool_choice={"type": "auto"}).params == asked().params


def test_system_text_and_blocks_go_in_front() -> None:
    blocks = [
        {"type": "text", "text": "Be"},
        {"type": "text", "text": "brief.", "cache_control": {"type": "ephemeral"}},
    ]
    assert conversation(system="Be brief.").messages == [{"role": "system", "content": "Be brief."}, *USER]
    assert conversation(system=blocks).messages == [{"role": "system", "content": "Be\nbrief."}, *USER]
    assert conversation(system=[]).messages == USER


def test_turns_of_one_role_are_joined_and_a_last_one_of_the_assistant_goes_on() -> None:
    messages = [
        {"role": "user", "content": "Hello"},
        {"role": "user", "content": [{"type": "text", "text": "you"}]},
        {"role": "assistant", "content": "The answer is ("},
    ]
    assert conversation(messages=messages) == Conversation(
        [{"role": "user", "content": "Hello\nyou"}, messages[2]], {"continue_final_message": True}
    )


def test_tools_and_their_calls_are_those_that_chat_templates_know() -> None:
    function = {"name": "weather", "description": "Of a city.", "parameters": SCHEMA}
    assert conversation(tools=[TOOL]).options == {"tools": [{"type": "function", "function": function}]}
    assert conversation(tools=[TOOL], tool_choice={"type": "none"}).options == {}

    messages = [
        *USER,
        {"role": "assistant", "content": [{"type": "text", "text": "I look."}, CALL, {**CALL, "id": "toolu_2"}]},
        {
            "role": "user",
            "content": [RESULT, {"type": "tool_result", "tool_use_id": "toolu_2"}, {"type": "text", "text": "So?"}],
        },
    ]
    function = {"name": "weather", "arguments": {"city": "Oslo"}}
    assert conversation(messages=messages).messages == [
        *USER,
        {
            "role": "assistant",
            "content": "I look.",
            "tool_calls": [{"id": f"toolu_{i}", "type": "function", "function": function} for i in (1, 2)],
        },
        {"role": "tool", "tool_call_id": "toolu_1", "name": "weather", "content": "rain"},
        {"role": "tool", "tool_call_id": "toolu_2", "name": "weather", "content": ""},
        {"role": "user", "content": "So?"},
    ]


def test_a_choice_of_tools_in_openai_s_fields() -> None:
    assert tool_fields({}) == tool_fields({"tool_choice": {"type": "auto"}}) == {"parallel_tool_calls": True}
    alone = {"type": "any", "disable_parallel_tool_use": True}
    assert tool_fields({"tool_choice": alone}) == {"parallel_tool_calls": False, "tool_choice": "required"}
    named = {"type": "function", "function": {"name": "f"}}
    assert tool_fields({"tool_choice": {"type": "tool", "name": "f"}})["tool_choice"] == named


def test_a_count_is_of_the_same_prompt() -> None:
    body = {"model": "m", "messages": USER, "system": "Be brief.", "tools": [TOOL], "thinking": {"type": "disabled"}}
    assert count_request(body) == message_request({**body, "max_tokens": 8}).prompts[0]
    with pytest.raises(RequestError, match="max_tokens: unknown parameter"):
        count_request({**body, "max_tokens": 8})


@pytest.mark.parametrize(
    ("body", "code", "param"),
    [
        ({"max_tokens": None}, "missing_required_parameter", "max_tokens"),
        ({"max_tokens": "8"}, "invalid_type", "max_tokens"),
        ({"max_tokens": 0}, "invalid_value", "max_tokens"),
        ({"messages": None}, "missing_required_parameter", "messages"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "invalid_value", "messages[0].role"),
        ({"messages": [{"role": "user", "content": [{"type": "image", "text": "x"}]}]}, "invalid_value", None),
        ({"temperature": 1.5}, "invalid_value", "temperature"),
        ({"temperature": "1"}, "invalid_type", "temperature"),
        ({"stop_sequences": "a"}, "invalid_type", "stop_sequences"),
        ({"stop_sequences": ["a", 3]}, "invalid_type", "stop_sequences"),
        ({"stop_sequences": [""]}, "invalid_value", "stop_sequences"),
        ({"system": 3}, "invalid_value", "system"),
        ({"stream": 1}, "invalid_type", "stream"),
        ({"thinking": {"type": "enabled", "budget_tokens": 1024}}, "unsupported_parameter", "thinking"),
        ({"tools": {"name": "f"}}, "invalid_type", "tools"),
        ({"tools": [{"name": "f"}]}, "invalid_type", "tools[0].input_schema"),
        ({"tools": [{"type": "web_search_20250305", "name": "f"}]}, "unsupported_parameter", "tools[0].type"),
        ({"tools": [TOOL], "tool_choice": {"type": "some"}}, "invalid_value", "tool_choice"),
        ({"tool_choice": {"type": "any"}}, "invalid_value", "tool_choice"),
        ({"tools": [TOOL], "tool_choice": {"type": "tool"}}, "invalid_type", "tool_choice.name"),
        ({"tools": [TOOL], "tool_choice": {"type": "tool", "name": "other"}}, "invalid_value", "tool_choice"),
        ({"tools": [TOOL], "tool_choice": "auto"}, "invalid_type", "tool_choice"),
        (
            {"tool_choice": {"type": "auto", "disable_parallel_tool_use": 1}},
            "invalid_type",
            "disable_parallel_tool_use",
        ),
        ({"messages": []}, "invalid_value", "messages"),
        ({"messages": [*USER, {"role": "assistant", "content": []}]}, "invalid_value", "messages"),
        ({"messages": [*USER, {"role": "assistant", "content": [CALL]}]}, "invalid_value", "messages"),
        ({"messages": ["Hello"]}, "invalid_type", "messages[0]"),
        ({"messages": [{"role": "user", "content": [CALL]}]}, "invalid_value", "messages[0].content"),
        ({"messages": [{"role": "assistant", "content": [RESULT]}]}, "invalid_value", "messages[0].content"),
        ({"messages": [{"role": "user", "content": [RESULT]}]}, "invalid_value", "messages[0].content.tool_use_id"),
        (
            {"messages": [{"role": "assistant", "content": [{**CALL, "input": "{}"}]}]},
            "invalid_type",
            "messages[0].content.input",
        ),
        ({"seed": 3}, "unknown_parameter", "seed"),
    ],
)
def test_what_cannot_be_served_is_refused(body: Any, code: str, param: str | None) -> None:
    with pytest.raises(RequestError) as caught:
        asked(**body)
    assert caught.value.code == code
    assert param is None or caught.value.param == param
