"""What an output has to look like; field names and their order follow vLLM."""

from __future__ import annotations

import json
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from pybatch.engine.arguments import suggest_names

CONSTRAINTS = ("json", "regex", "choice", "grammar", "json_object")
MAX_CHARACTERS = 1 << 20  # of a constraint


@suggest_names
@dataclass(frozen=True, slots=True)
class StructuredOutputsParams:
    """One constraint on an output. A bad value raises ValueError, an unknown keyword TypeError.

    json: a JSON schema, as a dict, as its text, or as a class of pydantic's.
    regex: a regular expression that the whole output matches, in Rust's syntax: no look-around, no back-references.
    choice: texts, one of which the output is.
    grammar: a context-free grammar in Lark's notation (as llguidance has it) or GBNF's.
    json_object: True: any JSON object.
    disable_any_whitespace: no white space between JSON's tokens. whitespace_pattern: a regular expression of what may
        stand there.
    disable_additional_properties: objects of the schema have no properties but those that it names.
    """

    json: Any = None
    regex: str | None = None
    choice: Any = None
    grammar: str | None = None
    json_object: bool | None = None
    disable_any_whitespace: bool = False
    disable_additional_properties: bool = False
    whitespace_pattern: str | None = None

    VLLM_ONLY: ClassVar[dict[str, tuple[Any, ...]]] = {  # by name, the values that ask for nothing
        "structural_tag": (None,),
        "disable_fallback": (False, True),
    }

    def __post_init__(self) -> None:
        if self.json_object is False:
            object.__setattr__(self, "json_object", None)
        given = [name for name in CONSTRAINTS if getattr(self, name) is not None]
        if len(given) != 1:
            got = " and ".join(given) or "none"
            raise ValueError(f"structured_outputs: expected exactly one of {', '.join(CONSTRAINTS)}, got {got}")
        for name in ("disable_any_whitespace", "disable_additional_properties", *given[:1]):
            if name not in CONSTRAINTS[:4] and not isinstance(getattr(self, name), bool):
                _fail(name, "True or False", getattr(self, name))
        for name in ("regex", "grammar", "whitespace_pattern"):
            if getattr(self, name) is not None:
                _expect_text(name, getattr(self, name))
        if self.json is not None:
            object.__setattr__(self, "json", _schema_text(self.json, closed=self.disable_additional_properties))
        if self.choice is not None:
            object.__setattr__(self, "choice", _choices(self.choice))

    @property
    def characters(self) -> int:
        """The constraint's size."""
        return sum(map(len, self.choice or ())) + len(self.json or self.regex or self.grammar or "")


def _schema_text(schema: Any, *, closed: bool) -> str:
    """A schema as JSON text. Kept as it is if it came as text, since properties come in its order."""
    if hasattr(schema, "model_json_schema"):
        schema = schema.model_json_schema()
    try:
        parsed = json.loads(_expect_text("json", schema)) if isinstance(schema, str) else schema
        if not isinstance(parsed, Mapping | bool):
            _fail("json", "a JSON schema: an object, its text or a pydantic class", schema)
        if isinstance(schema, str) and not closed:
            return schema
        text = json.dumps(_closed(parsed) if closed else parsed, ensure_ascii=False, allow_nan=False)
    except RecursionError:
        raise ValueError("structured_outputs: json: the schema is nested too deeply") from None
    except (TypeError, ValueError) as error:
        if str(error).startswith("structured_outputs"):
            raise
        raise ValueError(f"structured_outputs: json: expected a JSON schema: {error}") from error
    return _expect_text("json", text)


def _closed(schema: Any) -> Any:
    """The schema with additionalProperties false where an object says nothing of them."""
    if isinstance(schema, Mapping):
        inner = {key: _closed(value) for key, value in schema.items()}
        return {"additionalProperties": False, **inner} if "properties" in schema else inner
    return [_closed(each) for each in schema] if isinstance(schema, list) else schema


def _choices(choices: Any) -> tuple[str, ...]:
    if isinstance(choices, str) or not isinstance(choices, list | tuple) or not choices:
        _fail("choice", "a list of at least one text", choices)
    for choice in choices:
        _expect_text("choice", choice)
    if sum(map(len, choices)) > MAX_CHARACTERS:
        _fail("choice", f"at most {MAX_CHARACTERS:,} characters in all", choices)
    return tuple(choices)


def _expect_text(name: str, text: Any) -> str:
    if not isinstance(text, str) or not text:
        _fail(name, "a text that is not empty", text)
    if len(text) > MAX_CHARACTERS:
        raise ValueError(
            f"structured_outputs: {name}: expected at most {MAX_CHARACTERS:,} characters, got {len(text):,}"
        )
    try:
        text.encode()
    except UnicodeEncodeError:
        _fail(name, "Unicode text without unpaired surrogates", text)
    return str(text)


def _fail(name: str, expected: str, value: Any) -> None:
    raise ValueError(f"structured_outputs: {name}: expected {expected}, got {reprlib.repr(value)}")
