from __future__ import annotations

from typing import Any

import pytest

from pybatch.jobs.dialects.anthropic_batch import AnthropicBatch
from pybatch.jobs.dialects.choose import DIALECTS, detect, dialect_of
from pybatch.jobs.dialects.openai_batch import OpenAIBatch
from pybatch.jobs.dialects.plain import PlainDialect
from pybatch.jobs.dialects.template import Template

OPENAI = {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": {"model": "m"}}
ANTHROPIC = {"custom_id": "a", "params": {"model": "m"}}


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        (OPENAI, "openai-batch"),
        (ANTHROPIC, "anthropic-batch"),
        ({"prompt": "x"}, "rows"),
        ({"custom_id": "a", "prompt": "x"}, "rows"),
        ({"custom_id": "a", "body": "of a mail"}, "rows"),
        ({"body": {}, "params": {}}, "rows"),
        ({}, "rows"),
    ],
)
def test_the_first_row_tells_the_dialect(fields: dict[str, Any], name: str) -> None:
    assert detect(fields) == name
    assert name in DIALECTS


def test_a_dialect_is_made_with_what_it_needs() -> None:
    template = Template("{prompt}")
    assert dialect_of(None, OPENAI, created=3) == OpenAIBatch(3, "m")
    assert dialect_of("openai-batch", {}, created=3) == OpenAIBatch(3)
    assert dialect_of(None, ANTHROPIC, created=3) == AnthropicBatch()
    assert dialect_of(None, {}, created=3, system="s", chat=False) == PlainDialect(None, "s", False)
    assert dialect_of("rows", OPENAI, created=3) == PlainDialect()
    assert dialect_of(None, OPENAI, created=3, template=template) == PlainDialect(template)
    assert tuple(dialect_of(name, {}, created=3).name for name in DIALECTS) == DIALECTS


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"template": Template("x")}, "template: rows of openai-batch say themselves"),
        ({"system": "s"}, "system: rows of openai-batch"),
        ({"chat": False}, "raw: rows of openai-batch"),
    ],
)
def test_what_rows_say_themselves_is_not_said_again(given: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        dialect_of("openai-batch", OPENAI, created=3, **given)


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(ValueError, match="expected one of rows, openai-batch, anthropic-batch, got 'x'"):
        dialect_of("x", {}, created=3)
