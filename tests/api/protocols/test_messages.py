from __future__ import annotations

from typing import Any

import pytest

from pybatch.api.protocols.messages import expect_messages
from pybatch.api.protocols.request_error import RequestError


def test_messages_are_given_back() -> None:
    messages = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "é"}], "name": "x"},
        {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]},
        {"role": "tool", "content": "x"},
    ]
    assert expect_messages(messages) is messages


@pytest.mark.parametrize(
    ("messages", "says"),
    [
        ({"role": "user"}, "messages: expected a list, got dict"),
        ([], "messages: expected a list of at least one message"),
        ([{"content": "x"}], "messages: expected {'role': ..., 'content': ...}"),
        ([{"role": "user", "content": 3}], "messages: expected text as content, got 3"),
        ([{"role": "user", "content": [{"type": "image_url"}]}], "messages: expected {'type': 'text', 'text': ...}"),
        ([{"role": "user", "content": "x", "tool_calls": 3}], "messages: expected a list as tool calls, got 3"),
        ([{"role": "user", "content": "x", "tool_calls": [3]}], "messages: expected {'function': {'name': ...}}"),
        ([{"role": "usr", "content": "x"}], "messages[0].role: unknown role 'usr'; did you mean 'user'?"),
        ([{"role": "wizard", "content": "x"}], "messages[0].role: unknown role 'wizard'; expected one of system, dev"),
        (
            [{"role": "user", "content": "x"}, {"role": "assistant", "content": "é\udc00"}],
            "messages[1].content: expected Unicode text, got the unpaired surrogate '\\udc00' at character 1",
        ),
    ],
)
def test_what_is_no_conversation_is_refused(messages: Any, says: str) -> None:
    with pytest.raises(RequestError) as caught:
        expect_messages(messages)
    assert str(caught.value).startswith(says)
    assert caught.value.param is not None
    assert caught.value.param.startswith("messages")
