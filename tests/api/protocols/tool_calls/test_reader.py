from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pybatch.api.protocols.tool_calls.call import CallForm, ToolCall
from pybatch.api.protocols.tool_calls.json_calls import GRANITE, HERMES, LLAMA
from pybatch.api.protocols.tool_calls.marks import Marks
from pybatch.api.protocols.tool_calls.mistral import MISTRAL
from pybatch.api.protocols.tool_calls.python_calls import LFM, PYTHON
from pybatch.api.protocols.tool_calls.reader import CallReader, Part
from pybatch.api.protocols.tool_calls.xml_calls import XML

TOOLS: dict[str, Any] = {
    "f": {"name": "f", "parameters": {"properties": {"a": {"type": "integer"}, "s": {"type": "string"}}}},
    "get.weather": {"name": "get.weather"},
    "g": {"name": "g"},
}
F, G = ToolCall("f", '{"a": 1}'), ToolCall("g", "{}")
STRINGS = ToolCall("f", '{"s": "}]\\" </tool_call> é"}')
WEATHER = ToolCall("get.weather", '{"city": "Paris", "days": [1, 2.5, null, true]}')

CASES: list[tuple[CallForm, str, list[Part]]] = [
    # calls
    (HERMES, '<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>', [F]),
    (HERMES, 'I look.\n\n<tool_call>{"name": "f", "arguments": {"a": 1}}</tool_call>\n', ["I look.", F]),
    (HERMES, '<tool_call>{"arguments": {"a": 1}, "name": "f"}</tool_call>\n<tool_call>{"name": "g"}', [F, G]),
    (HERMES, '<tool_call>[{"name": "f", "arguments": {"a": 1}}, {"name": "g"}]</tool_call> done', [F, G, "done"]),
    (HERMES, '<tool_call>{"name": "f", "arguments": "{\\"a\\": 1}"}</tool_call>', [F]),
    (HERMES, '<tool_call>{"name": "f", "arguments": {"a": 1}}', [F]),
    (HERMES, '<tool_call>{"name": "f", "arguments": {"s": "}]\\" </tool_call> é"}}</tool_call>', [STRINGS]),
    (HERMES, '<tool_call>{"type": "function", "function": {"name": "g", "parameters": {}}}</tool_call>', [G]),
    (GRANITE, '<|tool_call|>[{"name": "f", "arguments": {"a": 1}}]', [F]),
    (GRANITE, '<|tool_call|>[{"name": "f", "arguments": {"a": 1}}]<|/tool_call|>', [F]),
    (LLAMA, '{"name": "f", "parameters": {"a": 1}}', [F]),
    (LLAMA, ' {"name": "f", "parameters": {"a": 1}}; {"name": "g", "parameters": {}}', [F, G]),
    (LLAMA, '<|python_tag|>{"name": "f", "parameters": {"a": 1}}', [F]),
    (LLAMA, 'So: <|python_start|>{"name": "f", "parameters": {"a": 1}}<|python_end|>', ["So:", F]),
    (MISTRAL, '[TOOL_CALLS] [{"name": "f", "arguments": {"a": 1}}, {"name": "g", "arguments": {}}]', [F, G]),
    (MISTRAL, 'Wait.[TOOL_CALLS]f[ARGS]{"a": 1}[TOOL_CALLS]g{}', ["Wait.", F, G]),
    (MISTRAL, '[TOOL_CALLS]f[CALL_ID]abc123def[ARGS]{"a": 1}', [F]),
    (PYTHON, "[f(a=1), g()]", [F, G]),
    (PYTHON, "[get.weather(city='Paris', days=[1, 2.5, None, true])]", [WEATHER]),
    (PYTHON, "[f(s='}]\" </tool_call> é')]", [STRINGS]),
    (LFM, "Yes <|tool_call_start|>[f(a=1)]<|tool_call_end|>Well", ["Yes", F, "Well"]),
    (
        XML,
        "<tool_call>\n<function=f>\n<parameter=a>\n1\n</parameter>\n</function>\n</tool_call>\n"
        "<tool_call><function=g></function></tool_call>",
        [F, G],
    ),
    (
        XML,
        "<tool_call>\n<function=f>\n<parameter=s>\n12\n</parameter>\n</function>\n</tool_call>",
        [ToolCall("f", '{"s": "12"}')],
    ),
    # text
    *[(form, "", []) for form in (HERMES, LLAMA, MISTRAL, PYTHON)],
    *[(form, text, [text]) for form in (HERMES, LLAMA, MISTRAL, PYTHON, XML) for text in (" a <b ", "\n", "[1]", "{}")],
    *[
        (form, text, [text])
        for form, text in (
            (HERMES, '<tool_call>{"name": "other", "arguments": {}}</tool_call>'),
            (HERMES, '<tool_call>{"name": "f", "arguments": {"a": 1}</tool_call>'),
            (HERMES, '<tool_call>{"name": "f", "arguments": {"a": NaN}}</tool_call>'),
            (HERMES, '<tool_call>{"name": "f", "arguments": {"a": "\\ud800"}}</tool_call>'),
            (HERMES, '<tool_call>{"name": "f", "arguments": 3}</tool_call>'),
            (HERMES, '<tool_call>{"name": ["f"]}</tool_call>'),
            (HERMES, "<tool_call></tool_call> <tool_call"),
            (HERMES, "<tool_call>" + '{"name":' * 500),
            (HERMES, "<tool_call>" + "[" * 5000 + "]" * 5000 + "</tool_call>"),
            (LLAMA, '{"city": "Paris"} is JSON'),
            (LLAMA, '{"name": "Paris"} is JSON'),
            (LLAMA, 'A call is {"name": "f", "parameters": {"a": 1}}'),
            (MISTRAL, "[TOOL_CALLS]other{}"),
            (MISTRAL, "[TOOL_CALLS] f"),
            (PYTHON, "[f(a=1) for f in x]"),
            (PYTHON, "[f(1)]"),
            (PYTHON, "[f(**x)]"),
            (PYTHON, "[f(a=b)]"),
            (PYTHON, "[f(a={1})]"),
            (PYTHON, "[f(a=1e999)]"),
            (PYTHON, "[f(a=" + "(" * 300 + "1" + ")" * 300 + ")]"),
            (PYTHON, "Use [f(a=1)]"),
            (XML, "<tool_call><function=other></function></tool_call>"),
            (XML, "<tool_call><function=f><parameter=a>1</function></tool_call>"),
        )
    ],
    (HERMES, '<tool_call>{"name": "f", "arguments": {"a": 1}} {"name": "x"}</tool_call>', [
        F, '{"name": "x"}</tool_call>',
    ]),
]  # fmt: skip


def read(reader: CallReader, pieces: list[str]) -> list[Part]:
    """With text that follows text joined."""
    parts: list[Part] = []
    for part in [part for piece in pieces for part in reader.add(piece)] + reader.end():
        if isinstance(part, str) and parts and isinstance(parts[-1], str):
            parts[-1] += part
        else:
            parts.append(part)
    return parts


@pytest.mark.parametrize(("form", "text", "parts"), CASES)
def test_calls_are_found_and_all_else_is_text(form: CallForm, text: str, parts: list[Part]) -> None:
    assert read(CallReader(form, TOOLS), [text]) == parts
    assert read(CallReader(form, TOOLS), list(text)) == parts


FORMS = (HERMES, GRANITE, LLAMA, MISTRAL, PYTHON, LFM, XML)
SNIPPETS = [
    *{text for _, text, _ in CASES if len(text) < 200},
    *(
        "<|eot|>",
        "<|eot_id|>",
        "<|e",
        "o",
        " ",
        "\n",
        "{",
        "}",
        "[",
        "]",
        '"',
        "'",
        "\\",
        "<tool_call>",
        "</tool_call>",
    ),
    *("[TOOL_CALLS]", "<|python_tag|>", '{"name": "f", ', '"arguments": {}}', "<function=f>", "</function>", "f(", ")"),
]
TEXTS = st.lists(st.sampled_from(SNIPPETS), max_size=6).map("".join)


@given(st.sampled_from(FORMS), TEXTS, st.data())
def test_where_the_pieces_end_makes_no_difference(form: CallForm, text: str, data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=12)))
    pieces = [text[begin:end] for begin, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    hidden = Marks({"<|eot|>", "<|eot_id|>", "<|e"})
    whole = read(CallReader(form, TOOLS, hidden=hidden), [text])
    assert read(CallReader(form, TOOLS, hidden=hidden), pieces) == whole
    assert read(CallReader(form, TOOLS, hidden=hidden), list(text)) == whole


@given(st.sampled_from(FORMS), TEXTS, st.data())
def test_a_call_that_the_prompt_has_begun_is_read_and_text_of_the_prompt_is_not_told_again(
    form: CallForm, text: str, data: st.DataObject
) -> None:
    begin = data.draw(st.integers(0, len(text)))
    whole = [part for part in read(CallReader(form, TOOLS), [text]) if not isinstance(part, str)]
    before = [part for part in CallReader(form, TOOLS).add(text[:begin]) if not isinstance(part, str)]
    parts = read(CallReader(form, TOOLS, before=text[:begin]), list(text[begin:]))
    assert [part for part in parts if not isinstance(part, str)] == whole[len(before) :]
    said = "".join(part for part in parts if isinstance(part, str))
    assert said.split() == [] or said.strip() in text[begin:] or len(whole) > len(before)


def test_no_more_calls_are_told_than_are_wanted() -> None:
    text = '<tool_call>[{"name": "f", "arguments": {"a": 1}}, {"name": "g"}]</tool_call><tool_call>{"name": "g"} so'
    assert read(CallReader(HERMES, TOOLS, most=1), [text]) == [F, "so"]
    assert read(CallReader(HERMES, TOOLS, most=2), [text]) == [F, G, "so"]


def test_what_is_no_call_is_not_held_back() -> None:
    def told(reader: CallReader, *pieces: str) -> list[str]:
        return ["".join(map(str, reader.add(piece))) for piece in pieces]

    reader = CallReader(LLAMA, TOOLS)
    assert told(reader, '{"n', "o", 'te": ', "1}", " ") == ["", '{"no', 'te":', " 1}", ""]
    assert reader.end() == [" "]
    assert told(CallReader(HERMES, TOOLS), "a <", "b> <to", "ols>") == ["a", " <b>", " <tools>"]
