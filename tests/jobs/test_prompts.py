from __future__ import annotations

from typing import Any

import pytest

from pybatch.api.inputs import Conversation
from pybatch.jobs.prompts import PromptMaker
from pybatch.jobs.reader import Row
from pybatch.jobs.template import Template

USER = [{"role": "user", "content": "Hello"}]


def row(**fields: Any) -> Row:
    return Row(0, 1, 1, fields)


def test_text_is_a_users_message_or_the_whole_prompt() -> None:
    assert PromptMaker()(row(prompt="Hello")) == Conversation(USER)
    assert PromptMaker(chat=False)(row(prompt="Hello")) == "Hello"
    assert PromptMaker(Template("Hel{x}"), chat=False)(row(x="lo", prompt="not this", messages=[])) == "Hello"


def test_messages_and_a_system_message() -> None:
    system = {"role": "system", "content": "Be brief."}
    assert PromptMaker()(row(messages=USER, prompt="not this")) == Conversation(USER)
    assert PromptMaker(system="Be brief.")(row(messages=USER)) == Conversation([system, *USER])
    assert PromptMaker(system="Be brief.")(row(prompt="Hello")) == Conversation([system, *USER])


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"text": "x"}, "neither 'prompt' nor 'messages'"),
        ({"prompt": None}, "neither 'prompt' nor 'messages'"),
        ({"prompt": 3}, "expected text, got int"),
        ({"messages": "x"}, "expected a list, got str"),
    ],
)
def test_a_row_without_a_prompt_is_refused(fields: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        PromptMaker()(row(**fields))
