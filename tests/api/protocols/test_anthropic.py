"""Against the types of the anthropic package."""

from __future__ import annotations

from typing import Any

import pytest
from anthropic.types import Message
from anthropic.types.shared import ErrorResponse

from pybatch.api.inputs import Conversation
from pybatch.api.outcomes import Answer, Failure, Sample
from pybatch.api.protocols.anthropic import error_response, message_request, message_response
from pybatch.api.protocols.request_error import RequestError

USER = [{"role": "user", "content": "Hello"}]


def asked(**body: Any) -> Any:
    return message_request({"model": "m", "max_tokens": 8, "messages": USER, **body})


def conversation(**body: Any) -> Any:
    (prompt,) = asked(**body).prompts
    return prompt


def test_a_message_and_its_sampling() -> None:
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
        ({"stream": True}, "unsupported_parameter", "stream"),
        ({"thinking": {"type": "enabled", "budget_tokens": 1024}}, "unsupported_parameter", "thinking"),
        ({"tools": [{"name": "f"}]}, "unsupported_parameter", "tools"),
        ({"seed": 3}, "unknown_parameter", "seed"),
    ],
)
def test_what_cannot_be_served_is_refused(body: Any, code: str, param: str | None) -> None:
    with pytest.raises(RequestError) as caught:
        asked(**body)
    assert caught.value.code == code
    assert param is None or caught.value.param == param


@pytest.mark.parametrize(
    ("sample", "reason", "sequence"),
    [
        (Sample("x", 3, "stop"), "end_turn", None),
        (Sample("x", 3, "stop", 7), "end_turn", None),
        (Sample("x", 3, "stop", "END"), "stop_sequence", "END"),
        (Sample("x", 8, "length"), "max_tokens", None),
        (Sample("x", 5, "length"), "model_context_window_exceeded", None),
    ],
)
def test_a_message_is_anthropics(sample: Sample, reason: str, sequence: str | None) -> None:
    body = message_response({"max_tokens": 8}, Answer(4, (sample,)), id="x", model="m")
    read = Message.model_validate(body, strict=True)
    assert read.model_dump(exclude_unset=True) == body
    assert not read.model_extra
    assert (read.id, read.stop_reason, read.stop_sequence) == ("msg_x", reason, sequence)
    assert (read.usage.input_tokens, read.usage.output_tokens) == (4, sample.tokens)


def test_an_error_is_anthropics() -> None:
    for code, kind in (("invalid_value", "invalid_request_error"), ("server_error", "api_error")):
        body = error_response(Failure("no", code), id="x")
        read = ErrorResponse.model_validate(body, strict=True)
        assert read.model_dump(exclude_unset=True) == body
        assert (read.error.type, read.error.message, read.request_id) == (kind, "no", "req_x")
