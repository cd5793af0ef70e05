"""Calls of tools, by models that always make the same."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import anthropic
import httpx
import jsonschema
import openai
import pytest
from calling_model import GO, save_chain_model
from local_server import local_server
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai_streams import events, joined

from pybatch.api.async_llm import AsyncLLM

TEMPLATE = "{% for m in messages %}{{ m.role }}: {{ m.content }}{{ m.tool_calls }}\n{% endfor %}" + GO + "{# FORM #}"
CALL = ['{"name": "weather", ', '"arguments": {"city": ', '"Paris"', "}}\n"]
TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]
USER = {"role": "user", "content": "Hi"}
BODY = {"model": "m", "messages": [USER], "tools": TOOLS, "temperature": 0}


@contextmanager
def serving(directory: Path, form: str, said: list[str], special: list[str]) -> Iterator[httpx.Client]:
    model = save_chain_model(directory, TEMPLATE.replace("FORM", form), said, special)
    llm = AsyncLLM(model, threads=1, num_kv_blocks=64)
    with (
        closing(llm),
        local_server(llm, served_model_name=["m"]) as server,
        httpx.Client(base_url=server.url) as client,
    ):
        yield client


def answer(client: httpx.Client, **changes: Any) -> dict[str, Any]:
    """The only choice of an answer, which is the same in pieces."""
    body = {**BODY, **changes}
    whole = client.post("/v1/chat/completions", json=body).json()
    ChatCompletion.model_validate(whole, strict=True)
    streamed = client.post("/v1/chat/completions", json={**body, "stream": True}).text
    for chunk in events(streamed):
        ChatCompletionChunk.model_validate(chunk, strict=True)
    (choice,) = whole["choices"]
    (other,) = joined(events(streamed))
    for call in [*choice["message"].get("tool_calls", ()), *other["message"].get("tool_calls", ())]:
        assert call.pop("id")
    assert other == choice
    return choice  # type: ignore[no-any-return]


WEATHER = {"type": "function", "function": {"name": "weather", "arguments": '{"city": "Paris"}'}}


def test_a_call_is_told_as_one(tmp_path: Path) -> None:
    with serving(tmp_path / "m", "<tool_call>", ["I look. ", "<tool_call>\n", *CALL, "</tool_call>"], []) as client:
        choice = answer(client)
        assert choice["finish_reason"] == "tool_calls"
        message = {"role": "assistant", "refusal": None}
        assert choice["message"] == {**message, "content": "I look.", "tool_calls": [WEATHER]}
        text = "I look. <tool_call>\n" + "".join(CALL) + "</tool_call>"
        plain = {"logprobs": None, "index": 0, "finish_reason": "stop", "message": {**message, "content": text}}
        assert answer(client, tools=None) == plain
        assert answer(client, tool_choice="none") == plain
        other = [{"type": "function", "function": {"name": "time"}}]
        assert answer(client, tools=other) == plain
        cut = answer(client, max_tokens=4)  # which ends within the call
        assert cut["finish_reason"] == "length"
        assert cut["message"]["content"] == "I look. <tool_call>\n" + "".join(CALL[:2])
        with_logprobs = answer(client, logprobs=True)
        assert with_logprobs["message"] == choice["message"]
        assert len(with_logprobs["logprobs"]["content"]) == 8
        begun = {"role": "assistant", "content": "I look. <tool_call>\n"}
        going_on = {"messages": [USER, begun], "continue_final_message": True, "add_generation_prompt": False}
        assert answer(client, **going_on)["message"] == {**message, "content": None, "tool_calls": [WEATHER]}
        called = client.post("/v1/chat/completions", json=BODY).json()["choices"][0]["message"]
        following = [USER, called, {"role": "tool", "tool_call_id": called["tool_calls"][0]["id"], "content": "Rain"}]
        assert answer(client, messages=following) == choice


def test_marks_that_are_special_tokens_are_seen_and_other_special_tokens_are_not(tmp_path: Path) -> None:
    special = ["[TOOL_CALLS]", "<|pause|>"]
    with serving(tmp_path / "m", "[TOOL_CALLS]", ["Hm", "<|pause|>", "[TOOL_CALLS]", *CALL], special) as client:
        choice = answer(client)
        assert (choice["message"]["content"], choice["message"]["tool_calls"]) == ("Hm", [WEATHER])
        called = client.post("/v1/chat/completions", json=BODY).json()["choices"][0]["message"]["tool_calls"][0]
        assert len(called["id"]) == 9
        assert called["id"].isalnum()
        shown = answer(client, skip_special_tokens=False)["message"]
        assert (shown["content"], shown["tool_calls"]) == ("Hm<|pause|>", [WEATHER])
        assert answer(client, tools=None)["message"]["content"] == "Hm" + "".join(CALL)


def test_one_call_is_told_where_several_are_not_wanted(tmp_path: Path) -> None:
    said = ["<tool_call>[", *CALL[:3], "}}, ", *(f" {piece}" for piece in CALL[:3]), " }}", "]</tool_call>"]
    with serving(tmp_path / "m", "<tool_call>", said, []) as client:
        assert answer(client)["message"]["tool_calls"] == [WEATHER, WEATHER]
        assert answer(client, parallel_tool_calls=False)["message"]["tool_calls"] == [WEATHER]


def test_the_client_s_stream_has_the_call(tmp_path: Path) -> None:
    with serving(tmp_path / "m", "<tool_call>", ["<tool_call>", *CALL, "</tool_call>"], []) as http:
        client = openai.OpenAI(base_url=f"{http.base_url}/v1", api_key="none", max_retries=0)
        with client.chat.completions.stream(model="m", messages=BODY["messages"], tools=TOOLS) as stream:  # type: ignore[arg-type]
            kinds = [event.type for event in stream]
            call = stream.get_final_completion().choices[0].message.tool_calls
        assert "tool_calls.function.arguments.done" in kinds
        assert call is not None
        assert call[0].function.parsed_arguments is None
        assert call[0].function.arguments == '{"city": "Paris"}'


def test_calls_are_blocks_of_anthropic_s_messages(tmp_path: Path) -> None:
    said = ["I look. ", "<tool_call>[", *CALL[:3], "}}, ", *(f" {piece}" for piece in CALL[:3]), " }}", "]</tool_call>"]
    tools: list[Any] = [{"name": "weather", "input_schema": {"type": "object"}}]
    with serving(tmp_path / "m", "<tool_call>", said, []) as http:
        client = anthropic.Anthropic(base_url=str(http.base_url), api_key="none")

        def ask(**changes: Any) -> anthropic.types.Message:
            body: Any = {"model": "m", "max_tokens": 99, "messages": [USER], "tools": tools, **changes}
            whole = client.messages.create(**body)
            with client.messages.stream(**body) as stream:
                streamed = stream.get_final_message()
            assert [block.to_dict() for block in streamed.content if block.type == "text"] == [
                block.to_dict() for block in whole.content if block.type == "text"
            ]
            assert inputs(streamed) == inputs(whole)
            assert streamed.stop_reason == whole.stop_reason
            return whole

        def inputs(message: anthropic.types.Message) -> list[Any]:
            return [block.input for block in message.content if block.type == "tool_use"]

        called = ask()
        assert [block.type for block in called.content] == ["text", "tool_use", "tool_use"]
        assert (inputs(called), called.stop_reason) == ([{"city": "Paris"}] * 2, "tool_use")
        assert len(inputs(ask(tool_choice={"type": "auto", "disable_parallel_tool_use": True}))) == 1
        assert ask(tool_choice={"type": "none"}).stop_reason == "end_turn"

        results: list[Any] = [
            {"type": "tool_result", "tool_use_id": block.id, "content": "Rain"}
            for block in called.content
            if block.type == "tool_use"
        ]
        following: list[Any] = [
            USER,
            {"role": "assistant", "content": called.content},
            {"role": "user", "content": results},
        ]
        assert ask(messages=following).stop_reason == "tool_use"


PLACE = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 5}, "unit": {"enum": ["C", "F"]}},
    "required": ["city", "unit"],
    "additionalProperties": False,
}
TWO_TOOLS = [
    {"type": "function", "function": {"name": "weather", "parameters": PLACE}},
    {"type": "function", "function": {"name": "time", "parameters": {"type": "object", "maxProperties": 0}}},
]
NAMED = {"type": "function", "function": {"name": "weather"}}


def expect_calls(message: dict[str, Any]) -> list[str]:
    """The names of an answer that is calls and nothing else."""
    assert message["content"] is None
    schemas = {tool["function"]["name"]: tool["function"]["parameters"] for tool in TWO_TOOLS}
    called = [call["function"] for call in message["tool_calls"]]
    for call in called:
        jsonschema.validate(json.loads(call["arguments"]), schemas[call["name"]])
    return [call["name"] for call in called]


@pytest.mark.parametrize(
    ("form", "special"),
    [("<tool_call>", []), ("[TOOL_CALLS]", ["[TOOL_CALLS]", "[ARGS]"]), ("no word of calls", [])],
)
def test_a_model_that_would_say_something_else_is_held_to_calls(tmp_path: Path, form: str, special: list[str]) -> None:
    with serving(tmp_path / "m", form, ["Hello. ", *special], special) as client:
        forced = {"tools": TWO_TOOLS, "temperature": 1, "max_tokens": 400, "seed": 1}
        assert "Hello" in answer(client, **forced, tool_choice="auto")["message"]["content"]
        named = answer(client, **forced, tool_choice=NAMED)
        assert named["finish_reason"] == "stop"
        assert expect_calls(named["message"]) == ["weather"]
        one = {**forced, "tool_choice": "required", "parallel_tool_calls": False}
        assert answer(client, **one)["finish_reason"] == "tool_calls"
        choices = client.post("/v1/chat/completions", json={**BODY, **one, "n": 16}).json()["choices"]
        called = [expect_calls(choice["message"]) for choice in choices]
        assert {name for (name,) in called} == {"weather", "time"}
        several = answer(client, **forced, tool_choice="required", logprobs=True, logit_bias={"0": -100})["message"]
        assert len(several["tool_calls"]) > 1
        cut = answer(client, **{**forced, "max_tokens": 8}, tool_choice=NAMED)
        assert (cut["finish_reason"], "tool_calls" in cut["message"]) == ("length", False)


def test_anthropic_s_any_and_tool_are_calls(tmp_path: Path) -> None:
    tools: list[Any] = [
        {"name": tool["function"]["name"], "input_schema": tool["function"]["parameters"]} for tool in TWO_TOOLS
    ]
    with serving(tmp_path / "m", "<tool_call>", ["Hello. "], []) as http:
        client = anthropic.Anthropic(base_url=str(http.base_url), api_key="none")

        def ask(choice: Any) -> list[Any]:
            body: Any = {"model": "m", "max_tokens": 400, "messages": [USER], "tools": tools, "tool_choice": choice}
            message = client.messages.create(**body)
            assert message.stop_reason == "tool_use"
            for block in message.content:
                assert block.type == "tool_use"
                jsonschema.validate(block.input, next(t["input_schema"] for t in tools if t["name"] == block.name))
            with client.messages.stream(**body) as stream:
                assert all(block.type == "tool_use" for block in stream.get_final_message().content)
            return [block.name for block in message.content if block.type == "tool_use"]

        assert len(ask({"type": "any", "disable_parallel_tool_use": True})) == 1
        assert ask({"type": "tool", "name": "weather"}) == ["weather"]


def test_calls_that_cannot_be_forced_are_refused(tmp_path: Path) -> None:
    with serving(tmp_path / "m", "<tool_call>", ["Hello. "], []) as client:
        looking = {"type": "object", "properties": {"a": {"type": "string", "pattern": "(?=a)"}}, "required": ["a"]}
        bad = [{"type": "function", "function": {"name": "look", "parameters": looking}}]
        response = client.post("/v1/chat/completions", json={**BODY, "tools": bad, "tool_choice": "required"})
        assert response.status_code == 400
        assert response.json()["error"]["param"] == "tools"
        assert response.json()["error"]["message"].startswith("tools: ")
