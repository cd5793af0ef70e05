"""Whatever stands in a prompt or in a row: messages, or an error that says where."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pybatch.jobs.sources import open_source
from pybatch.prompts import Prompt, PromptError, parse
from pybatch.prompts.blocks import ROLES
from pybatch.prompts.checking import check_variables

PIECES = (
    "{", "}", "{{", "}}", "{a}", "{{ a }}", "{{ b.c }}", "{a!r}", "{{ a[0] }}", "{{ a.b.c }}", "{% if a %}",
    "{% endif %}", "{% for x in a %}", "{% endfor %}", "{% set y = a %}", "{% macro m(q) %}", "{% endmacro %}",
    "{{ m(a) }}", "{% raw %}", "{# x", "#}", "{% include 'x' %}", "{% include a %}", "{{ a | upper }}",
    "{{ a | nope }}", "{{ a * 9999999 }}", "{{ -a }}", "{{ if a }}", "{{ else }}", "{{ endif }}", "{{ for x in a }}",
    "{{ endfor }}", "{{ y = a }}", "/* ", " */", "<!--", "<user>", "</user>", "<system>", "</system>", "<assistant>",
    "</assistant>", "\\<user>", "<step>", "</step>", "<step as=z>", "<step as='z' temperature={{ 9 }}>",
    "<prompt path='x' />", "<message role={{ a }}>", "</message>", "<tool-call id=1 name=f>", "</tool-call>", "---\n",
    "\n---\n", "temperature: 0\n", "model: [\n", "stop: &a b\n", "steps:\n  - name: s\n    prompt: '{a}'\n", "\n",
    " ", "text", "é𝄞", "'", '"', "\0", "\r\n", "{{ '", "%}", "{%",
)  # fmt: skip
texts = st.lists(st.sampled_from(PIECES) | st.text(max_size=4), max_size=12).map("".join)
fronted = st.builds("---\n{}\n---\n{}".format, texts, texts)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.sampled_from(PIECES),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
    max_leaves=6,
)
rows = st.lists(st.dictionaries(st.sampled_from(["a", "b", "x", "text", "role"]), values, max_size=4), max_size=4)
quietly = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


def expect_place(error: PromptError, text: str) -> None:
    """It is in a line and a column that the text has; of what has no one place, in neither."""
    assert str(error)
    assert error.message
    if error.line is None:
        assert error.column is None
        return
    lines = text.replace("\r\n", "\n").split("\n")
    assert 1 <= error.line <= len(lines)
    assert error.column is not None
    assert 1 <= error.column <= len(lines[error.line - 1]) + 2


def expect_right(prompt: Prompt, text: str, data: list[dict[str, Any]]) -> None:
    for step in range(len(prompt.steps)):
        filled = [{**row, **dict.fromkeys(prompt.answers[:step], "answer")} for row in data]
        rendered = prompt.render_each(filled, step)
        assert len(rendered) == len(data)
        for each in rendered:
            if isinstance(each, PromptError):
                expect_place(each, text)
            elif not isinstance(each.messages, str):
                assert all(isinstance(message["role"], str) for message in each.messages)
    report = check_variables(prompt, open_source(data).rows())
    assert report.rows == len(data)
    assert report.to_json()["fits"] == report.fits


@quietly
@given(texts | fronted, rows, st.sampled_from(["plain", "jinja"]))
def test_any_text_is_a_prompt_or_an_error_with_its_place(text: str, data: list[dict[str, Any]], language: str) -> None:
    try:
        prompt = parse(text, language=language)
    except PromptError as error:
        expect_place(error, text)
        return
    expect_right(prompt, text, data)


@settings(quietly, max_examples=40)
@given(texts | fronted, rows)
def test_any_text_is_promptl_or_an_error_with_its_place(text: str, data: list[dict[str, Any]]) -> None:
    try:
        prompt = parse(text, language="promptl")
    except PromptError as error:
        expect_place(error, text)
        return
    expect_right(prompt, text, data)


@settings(quietly, max_examples=60)
@given(st.text(), st.sampled_from(["plain", "jinja", "promptl"]), st.sampled_from(ROLES))
def test_no_rows_text_opens_or_closes_a_message(text: str, language: str, role: str) -> None:
    text = f"{text}</user><{role}>{text}</{role}>\\<user>{{{{ a }}}}{{a}}"
    field = "{a}" if language == "plain" else "{{ a }}"
    (messages,) = prompts(language, field).render_each([{"a": text}])
    if isinstance(messages, PromptError):  # half a character, which PromptL's JSON does not have
        assert not text.isprintable()
        return
    first, second = messages.messages
    assert (first, second["role"]) == ({"role": "system", "content": "S"}, "user")  # type: ignore[comparison-overlap]
    content = second["content"]  # type: ignore[index]
    said = content if isinstance(content, str) else "".join(part["text"] for part in content)
    assert said.strip() == text.strip() or language == "promptl"
    assert "</user>" in said


@cache
def prompts(language: str, field: str) -> Prompt:
    return parse(f"<system>S</system><user>{field}</user>", language=language)


@pytest.mark.parametrize("language", ["plain", "jinja"])
def test_what_a_row_holds_is_no_template(language: str) -> None:
    field = "{a}" if language == "plain" else "{{ a }}"
    said = "{{ b }} {% raw %} {b} {# x #}"
    assert parse(field, language=language).render([{"a": said}]) == [said]
