from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest

from pybatch import SamplingParams
from pybatch.api.inputs import Conversation
from pybatch.api.protocols.openai_requests import (
    SAMPLING,
    StreamOptions,
    chat_request,
    completion_request,
    split_stream,
)
from pybatch.api.protocols.request_error import RequestError

USER = [{"role": "user", "content": "Hello"}]


TOOLS = [{"type": "function", "function": {"name": "f"}}]


def called(name: str) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name}}


def taking(kind: str) -> list[Any]:
    return [{"type": "function", "function": {"name": "f", "parameters": {"type": kind}}}]


def chat(**body: Any) -> Any:
    return chat_request({"model": "m", "messages": USER, **body})


def completion(**body: Any) -> Any:
    return completion_request({"model": "m", "prompt": "Hello", **body})


def options(**body: Any) -> Any:
    (conversation,) = chat(**body).prompts
    return conversation.options


def test_a_conversation_and_its_sampling() -> None:
    asked = chat(max_tokens=5, stop=["a"], seed=3, temperature=0, top_p=0.5, n=2, presence_penalty=None, user="u")
    assert asked.prompts == (Conversation(USER),)
    assert asked.params == {"max_tokens": 5, "stop": ["a"], "seed": 3, "temperature": 0, "top_p": 0.5, "n": 2}


def test_what_sampling_takes_under_other_names_and_types() -> None:
    assert chat(max_completion_tokens=7, max_tokens=5).params == {"max_tokens": 7}
    assert chat(logit_bias={"42": -100}).params == {"logit_bias": {42: -100}}
    assert chat(logprobs=True).params == {"logprobs": 0}
    assert chat(logprobs=True, top_logprobs=4).params == {"logprobs": 4}
    assert chat(logprobs=False, top_logprobs=0).params == {}
    assert completion(logprobs=3).params == {"logprobs": 3}
    assert completion(logprobs=0).params == {"logprobs": 0}


def test_a_policy_for_the_kv_cache_is_an_object() -> None:
    policy = {"type": "snapkv", "budget": 64}
    assert chat(kv_policy=policy).params == completion(kv_policy=policy).params == {"kv_policy": policy}
    with pytest.raises(RequestError, match=r"^kv_policy: SnapKV: budget: expected an integer") as error:
        chat(kv_policy={"type": "snapkv", "budget": 0})
    assert error.value.param == "kv_policy"


def test_vllms_fields_are_taken_too() -> None:
    given = {
        "top_k": 3, "min_p": 0.1, "min_tokens": 1, "repetition_penalty": 1.1, "ignore_eos": True, "stop_token_ids": [2],
        "skip_special_tokens": False, "include_stop_str_in_output": True, "bad_words": ["x"],
        "allowed_token_ids": [1, 2], "truncate_prompt_tokens": 9, "speculate": False,
        "use_beam_search": True, "best_of": 4, "length_penalty": 0.5, "early_stopping": "never",
    }  # fmt: skip
    assert chat(**given, repetition_detection=None).params == given
    assert completion(**given, spaces_between_special_tokens=True).params == given
    assert {field.name for field in fields(SamplingParams)} >= SAMPLING


def test_the_chat_template_gets_tools_and_variables() -> None:
    tools = [{"type": "function", "function": {"name": "f"}}]
    assert options(tools=tools, tool_choice="auto") == {"tools": tools}
    assert options(tools=tools, tool_choice="none") == {}
    assert options(chat_template_kwargs={"enable_thinking": False}, reasoning_effort="low") == {
        "enable_thinking": False,
        "reasoning_effort": "low",
    }
    assert options(continue_final_message=True, add_generation_prompt=False) == {
        "continue_final_message": True,
        "add_generation_prompt": False,
    }


def test_what_asks_for_nothing_passes() -> None:
    body = {
        "stream": False, "stream_options": None, "response_format": {"type": "text"}, "store": True, "audio": None,
        "metadata": {"a": "b"}, "service_tier": "auto", "modalities": ["text"], "parallel_tool_calls": True,
        "tools": None, "logit_bias": None,
    }  # fmt: skip
    assert chat(**body).params == {}


@pytest.mark.parametrize(
    ("prompt", "prompts"),
    [
        ("a", ("a",)),
        (["a"], ("a",)),
        (["a", "b"], ("a", "b")),
        ([1, 2], ([1, 2],)),
        ([[1, 2], [3]], ([1, 2], [3])),
    ],
)
def test_prompts_to_complete(prompt: Any, prompts: Any) -> None:
    assert completion(prompt=prompt).prompts == prompts


@pytest.mark.parametrize(
    ("body", "code", "param", "says"),
    [
        ({"messages": None}, "missing_required_parameter", "messages", "missing"),
        ({"messages": "Hi"}, "invalid_type", "messages", "expected a list, got str"),
        ({"max_tokns": 3}, "unknown_parameter", "max_tokns", "did you mean 'max_tokens'?"),
        ({"max_tokns": None}, "unknown_parameter", "max_tokns", "unknown parameter"),
        ({"max_tokens": 0}, "invalid_value", "max_tokens", "an integer of at least 1, got 0"),
        ({"max_tokens": "5"}, "invalid_value", "max_tokens", "an integer of at least 1, got '5'"),
        ({"max_completion_tokens": 1.5}, "invalid_type", "max_completion_tokens", "an integer of at least 1, got 1.5"),
        ({"temperature": "hot"}, "invalid_value", "temperature", "a number of at least 0"),
        ({"stream": True}, "unsupported_parameter", "stream", "expected false or null, got True"),
        ({"response_format": {"type": "xml"}}, "invalid_value", "response_format", "'json_object' or 'json_schema'"),
        ({"response_format": {"type": "json_schema"}}, "invalid_type", "response_format.json_schema", "an object"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}},
            "invalid_type",
            "response_format.json_schema.schema",
            "a JSON schema",
        ),
        ({"guided_regex": "a", "guided_choice": ["b"]}, "invalid_value", "guided_choice", "none beside guided_regex"),
        ({"tools": "f"}, "invalid_type", "tools", "a list of objects"),
        ({"tools": ["f"]}, "invalid_type", "tools", "a list of objects"),
        (
            {"tools": [{"type": "custom", "custom": {"name": "f"}}]},
            "unsupported_parameter",
            "tools[0].type",
            "'function'",
        ),
        ({"tool_choice": "some"}, "invalid_value", "tool_choice", "'auto', 'none', 'required' or"),
        ({"tool_choice": {"type": "custom"}, "tools": TOOLS}, "invalid_value", "tool_choice", "'required' or"),
        ({"tool_choice": "required"}, "invalid_value", "tool_choice", "expected tools beside it"),
        ({"tool_choice": called("g"), "tools": TOOLS}, "invalid_value", "tool_choice", "expected one of f, got 'g'"),
        ({"tool_choice": "required", "tools": [{"a": 1}]}, "invalid_value", "tools[0]", "expected a function"),
        (
            {"tool_choice": called("f"), "tools": taking("array")},
            "invalid_value",
            "tools[0].parameters",
            "schema of an",
        ),
        (
            {"tool_choice": "required", "tools": TOOLS, "guided_regex": "a"},
            "invalid_value",
            "guided_regex",
            "none where a call",
        ),
        ({"parallel_tool_calls": 0}, "invalid_type", "parallel_tool_calls", "true or false, got 0"),
        ({"logprobs": 3}, "invalid_type", "logprobs", "true or false, got 3"),
        ({"top_logprobs": 3}, "invalid_value", "top_logprobs", "logprobs = true"),
        ({"logprobs": True, "top_logprobs": -1}, "invalid_value", "top_logprobs", "an integer of at least 0"),
        ({"logit_bias": {"a": 1}}, "invalid_value", "logit_bias", "a dict from token ids"),
        ({"logit_bias": {"1" * 5000: 1}}, "invalid_value", "logit_bias", "a dict from token ids"),
        ({"skip_reading_prefix_cache": True}, "unsupported_parameter", "skip_reading_prefix_cache", "false or null"),
        ({"structured_outputs": {"regex": ""}}, "invalid_value", "structured_outputs", "text that is not empty"),
        ({"structured_outputs": {"regexp": "a"}}, "invalid_value", "structured_outputs", "did you mean 'regex'"),
        ({"chat_template_kwargs": [1]}, "invalid_type", "chat_template_kwargs", "an object"),
        ({"chat_template_kwargs": {"tools": 1}}, "invalid_value", "chat_template_kwargs.tools", "no variable"),
    ],
)
def test_what_cannot_be_served_is_refused_with_the_field(body: Any, code: str, param: str, says: str) -> None:
    with pytest.raises(RequestError) as caught:
        chat(**body)
    assert (caught.value.code, caught.value.param) == (code, param)
    assert str(caught.value).startswith(f"{param}: ")
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("body", "code", "param", "says"),
    [
        ({"prompt": None}, "missing_required_parameter", "prompt", "missing"),
        ({"prompt": []}, "invalid_value", "prompt", "at least one"),
        ({"prompt": {"a": 1}}, "invalid_type", "prompt", "text, token ids or a list of these"),
        ({"prompt": ["a", 3]}, "invalid_type", "prompt", "text, token ids or a list of these"),
        ({"prompt": [1, -1]}, "invalid_type", "prompt", "text, token ids or a list of these"),
        ({"prompt": [True]}, "invalid_type", "prompt", "text, token ids or a list of these"),
        ({"prompt": [[]]}, "invalid_type", "prompt", "text, token ids or a list of these"),
        ({"prompt": "a\udc00"}, "invalid_value", "prompt", "unpaired surrogate"),
        ({"messages": []}, "unknown_parameter", "messages", "unknown parameter"),
        ({"logprobs": True}, "invalid_type", "logprobs", "an integer of at least 0"),
        ({"echo": 1}, "invalid_type", "echo", "true or false, got 1"),
        ({"max_tokens": 0}, "invalid_value", "max_tokens", "an integer of at least 1, got 0"),
        ({"max_tokens": False, "echo": True}, "invalid_value", "max_tokens", "an integer of at least 1, got False"),
        ({"priority": "high"}, "invalid_type", "priority", "an integer, got 'high'"),
        ({"best_of": 3}, "invalid_value", "best_of", "expected None or n's value, without use_beam_search"),
        ({"use_beam_search": True, "n": 3, "best_of": 2}, "invalid_value", "best_of", "an integer of at least 3"),
        ({"suffix": "x"}, "unsupported_parameter", "suffix", 'expected "" or null'),
    ],
)
def test_completions_are_refused_with_the_field(body: Any, code: str, param: str, says: str) -> None:
    with pytest.raises(RequestError) as caught:
        completion(**body)
    assert (caught.value.code, caught.value.param) == (code, param)
    assert says in str(caught.value)


def test_an_echo_takes_the_log_probabilities_of_the_prompt_too() -> None:
    assert completion(echo=True).params == {}
    assert completion(echo=True, logprobs=2).params == {"logprobs": 2, "prompt_logprobs": 2}
    assert completion(echo=True, logprobs=2, prompt_logprobs=5).params == {"logprobs": 2, "prompt_logprobs": 5}
    assert completion(echo=True, prompt=[1, 2], max_tokens=0).params == {"max_tokens": 1}


def test_a_request_has_a_priority() -> None:
    asked = (chat(priority=-3), completion(priority=5), chat(priority=None))
    assert [each.standing.priority for each in asked] == [-3, 5, 0]


def test_whether_an_answer_is_streamed_is_apart_from_what_is_asked() -> None:
    body = {"model": "m", "prompt": "a"}
    assert split_stream(body) == (None, body)
    assert split_stream({**body, "stream": False, "stream_options": None}) == (None, body)
    assert split_stream({**body, "stream": True}) == (StreamOptions(), body)
    options = {"include_usage": True, "include_obfuscation": False, "continuous_usage_stats": None}
    assert split_stream({**body, "stream": True, "stream_options": options}) == (StreamOptions(True), body)
    assert split_stream([1]) == (None, [1])


@pytest.mark.parametrize(
    ("body", "param", "says"),
    [
        ({"stream": "yes"}, "stream", "expected true or false, got 'yes'"),
        ({"stream_options": 3, "stream": True}, "stream_options", "an object, got 3"),
        ({"stream_options": {"usage": True}}, "stream_options.usage", "unknown parameter"),
        ({"stream_options": {"include_usage": 1}}, "stream_options.include_usage", "true or false, got 1"),
        ({"stream": True, "prompt_logprobs": 1}, "prompt_logprobs", "not in a stream"),
    ],
)
def test_what_no_stream_has_is_refused_with_the_field(body: Any, param: str, says: str) -> None:
    with pytest.raises(RequestError) as caught:
        split_stream(body)
    assert caught.value.param == param
    assert says in str(caught.value)


def test_best_of_as_many_as_are_asked_for_is_nothing_more() -> None:
    assert SamplingParams(**completion(n=3, best_of=3).params) == SamplingParams(n=3)


@pytest.mark.parametrize("body", [None, [], "x", 3])
def test_a_body_that_is_no_object_is_refused(body: Any) -> None:
    with pytest.raises(RequestError, match="body: expected an object"):
        chat_request(body)


def test_a_request_says_who_asks() -> None:
    asked = (chat(user="ann"), completion(user="bob"), chat(), chat(user=None), chat(user=7), chat(user=""))
    assert [each.standing.user for each in asked] == ["ann", "bob", None, None, None, None]


def test_a_request_has_a_target() -> None:
    targets = [each.standing.ttft_target for each in (chat(ttft_target=0.5), completion(ttft_target=2), chat())]
    assert targets == [0.5, 2, None]
    with pytest.raises(RequestError, match="ttft_target: expected a number of seconds, at least 0, or None") as refused:
        chat(ttft_target="soon")
    assert (refused.value.code, refused.value.param) == ("invalid_type", "ttft_target")
