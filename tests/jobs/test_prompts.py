from __future__ import annotations

from typing import Any

import pytest

from pybatch.api.inputs import Conversation
from pybatch.jobs.prompts import PromptMaker, Template
from pybatch.jobs.reader import Row

USER = [{"role": "user", "content": "Hello"}]


def row(**fields: Any) -> Row:
    return Row(0, 1, 1, fields)


def test_a_template_takes_text_as_it_is_and_the_rest_as_json() -> None:
    template = Template("{{{text}}} {n} {list} {none}")
    fields = {"text": "{n} é", "n": 1.5, "list": ["é", {"a": True}], "none": None}
    assert template.fill(fields) == '{{n} é} 1.5 ["é", {"a": true}] null'


@pytest.mark.parametrize("text", ["{}", "{a!r}", "{a:>3}", "{a", "a}", 'say {"x": 1}'])
def test_what_is_no_template_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="for braces that are text"):
        Template(text)


def test_an_unknown_field_is_named_with_those_there_are() -> None:
    with pytest.raises(ValueError, match="asks for 'txet'; the row has 'text', 'id'"):
        PromptMaker(Template("{txet}"))(row(text="a", id=1))


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
