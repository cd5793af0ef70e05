"""Grammars of answers that have to be calls of tools."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Protocol

from pybatch.api.protocols.tool_calls.call import CallForm, Tools

SpecialTokens = Mapping[str, int]
"""Ids by text."""

AS_WRITTEN = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
"""JSON as chat templates show it to models, and without white space that a small model might never end."""


class ForcedForm(CallForm, Protocol):
    """A form in which an answer can be held to calls."""

    def grammar(self, tools: Tools, special: SpecialTokens, *, several: bool) -> str:
        """Of calls of these tools, in Lark's notation: one, or at least one. special: the tokens that are no text."""
        ...


def written(text: str, special: SpecialTokens) -> str:
    """What the grammar has for a text, which may be a special token."""
    return f"<[{special[text]}]>" if text in special else json.dumps(text)


def lines(*rules: str) -> str:
    return "\n".join(rules)


def object_rules(tools: Tools, arguments: str) -> list[str]:
    """Rules by which `call` is a JSON object with a name and, under that key, arguments that match the tool's schema.
    The schema is by itself in the grammar, so that its references hold."""
    beginnings = [f'{{"name": {json.dumps(name, ensure_ascii=False)}, "{arguments}": ' for name in tools]
    schemas = map(schema_of, tools.values())
    return call_rules([f'{json.dumps(begin)} {schema} "}}"' for begin, schema in zip(beginnings, schemas, strict=True)])


def call_rules(calls: list[str]) -> list[str]:
    """Rules by which `call` is one of these."""
    rules = [f"call_{number}: {call}" for number, call in enumerate(calls)]
    return ["call: " + " | ".join(f"call_{number}" for number in range(len(calls))), *rules]


def schema_of(function: Mapping[str, object]) -> str:
    """What the grammar has for a function's arguments. Raises ValueError if they are no object."""
    schema = function.get("parameters")
    if schema is None:
        schema = {}
    if not isinstance(schema, Mapping) or schema.get("type", "object") != "object":
        raise ValueError(f"expected the JSON schema of an object, got {schema!r:.80}")
    return f"%json {json.dumps({**schema, 'type': 'object', 'x-guidance': AS_WRITTEN}, allow_nan=False)}"
