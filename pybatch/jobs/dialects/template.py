"""Prompt templates over a row's fields."""

from __future__ import annotations

import json
import string
from collections.abc import Mapping
from typing import Any

from pybatch.api.protocols.request_error import RequestError


class Template:
    """Text with {field} where a row's field goes; {{ and }} stand for braces.

    Raises ValueError if the text is not such a template.
    """

    def __init__(self, text: str) -> None:
        self.parts: list[tuple[str, str | None]] = []
        try:
            for literal, field, spec, conversion in string.Formatter().parse(text):
                if field is not None and (spec or conversion or not field.strip()):
                    raise ValueError("only {field} is known")
                self.parts.append((literal, field))
        except ValueError as error:
            raise ValueError(f"{error}; write {{{{ and }}}} for braces that are text") from None

    def fill(self, fields: Mapping[str, Any]) -> str:
        """Puts in the fields: text as it is, everything else as JSON. Raises RequestError if one is missing."""
        return "".join(literal + (self.value(fields, name) if name is not None else "") for literal, name in self.parts)

    @property
    def fields(self) -> list[str]:
        """The names that it asks for."""
        return [name for _, name in self.parts if name is not None]

    def value_of(self, fields: Mapping[str, Any]) -> Any:
        """As fill; but a template that is one field and nothing else has its value, of whatever type."""
        match self.parts:
            case [("", str(name))] if name in fields:
                return fields[name]
        return self.fill(fields)

    def value(self, fields: Mapping[str, Any], name: str) -> str:
        if name not in fields:
            there = ", ".join(map(repr, fields)) or "nothing"
            raise RequestError(
                f"the template asks for {name!r}; the row has {there}", "missing_required_parameter", name
            )
        value = fields[name]
        return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
