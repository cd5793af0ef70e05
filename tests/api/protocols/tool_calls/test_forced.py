"""Whatever a model draws under a grammar of calls is read as calls whose arguments match their schemas."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Mapping
from typing import Any

import jsonschema
import pytest
import torch

from pybatch.api.protocols.tool_calls.call import CallForm, ToolCall
from pybatch.api.protocols.tool_calls.choose import FORCED
from pybatch.api.protocols.tool_calls.forced import ForcedForm
from pybatch.api.protocols.tool_calls.json_calls import GRANITE, HERMES, LFM_JSON, LLAMA, PLAIN
from pybatch.api.protocols.tool_calls.mistral import MISTRAL
from pybatch.api.protocols.tool_calls.python_calls import LFM, PYTHON
from pybatch.api.protocols.tool_calls.reader import CallReader
from pybatch.api.protocols.tool_calls.xml_calls import XML
from pybatch.engine.structured.grammar import Vocabulary, grammar_text, make_matcher, make_tokenizer
from pybatch.engine.structured.matcher import Matcher, fill_masks
from pybatch.engine.structured.params import StructuredOutputsParams

TOOLS: dict[str, dict[str, Any]] = {
    "weather": {
        "name": "weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "maxLength": 6}, "unit": {"$ref": "#/$defs/unit"}},
            "required": ["city", "unit"],
            "additionalProperties": False,
            "$defs": {"unit": {"enum": ["C", 'de"g', {"F": [1]}]}},
        },
    },
    "get-time.v2": {
        "name": "get-time.v2",
        "parameters": {
            "properties": {"zones": {"type": "array", "items": {"type": "integer"}, "maxItems": 2}},
            "required": ["zones"],
            "additionalProperties": False,
        },
    },
    "now": {"name": "now", "parameters": {"type": "object", "maxProperties": 0}},
}
MARKS = ("<tool_call>", "</tool_call>", "<|tool_call|>", "[TOOL_CALLS]", "<|tool_call_start|>", "<|tool_call_end|>")
EOS = 256


def draws(grammar: str, special: Mapping[str, int], count: int) -> Iterator[str | None]:
    """Texts of bytes drawn at random among those that the grammar allows; None: one that did not end."""
    texts = {number: text.encode() for text, number in special.items()}
    tokens = [bytes([byte]) for byte in range(256)] + [b"", *texts.values()]
    tokenizer = make_tokenizer(Vocabulary(tokens, frozenset([EOS, *texts]), (EOS,)))
    first = Matcher(make_matcher(tokenizer, grammar_text(StructuredOutputsParams(grammar=grammar))))
    mask = torch.zeros(1, -(-len(tokens) // 32), dtype=torch.int32)
    bits = torch.arange(32)
    for seed in range(count):
        random.seed(seed)
        matcher, said = first.copy(), b""
        for _ in range(400):
            if matcher.ended:
                break
            fill_masks(mask, [(matcher, 0)])
            allowed = ((mask[0, :, None] >> bits) & 1).flatten().nonzero().flatten().tolist()
            token = EOS if EOS in allowed and random.random() < 0.5 else random.choice(allowed)
            if token == EOS:
                break
            matcher.accept([token])
            said += tokens[token]
        else:
            yield None
            continue
        yield said.decode()


@pytest.mark.parametrize("several", [True, False])
@pytest.mark.parametrize("marks_are_special", [True, False])
@pytest.mark.parametrize("form", [GRANITE, HERMES, LFM_JSON, LLAMA, PLAIN, MISTRAL])
def test_what_is_drawn_is_calls(form: ForcedForm, marks_are_special: bool, several: bool) -> None:
    marks = MARKS + (("[ARGS]",) if several else ()) if marks_are_special else ()
    special = {mark: EOS + 1 + i for i, mark in enumerate(marks)}
    grammar = form.grammar(TOOLS, special, several=several)
    counts: list[int] = []
    names: set[str] = set()
    for text in draws(grammar, special, 25):
        if text is None:
            continue
        reader = CallReader(form, TOOLS)
        parts = [*reader.add(text), *reader.end()]
        calls = [part for part in parts if isinstance(part, ToolCall)]
        assert calls == parts, text
        for call in calls:
            jsonschema.validate(json.loads(call.arguments), TOOLS[call.name]["parameters"])
        counts.append(len(calls))
        names |= {call.name for call in calls}
    assert len(counts) > 20
    assert names == set(TOOLS)
    assert set(counts) == {1} if not several else len(set(counts)) > 1


@pytest.mark.parametrize("form", [GRANITE, HERMES, LFM, LLAMA, PYTHON, MISTRAL, XML, None])
def test_every_form_has_one_that_can_be_forced(form: CallForm | None) -> None:
    assert FORCED[form].grammar(TOOLS, {}, several=False).startswith("start: ")
