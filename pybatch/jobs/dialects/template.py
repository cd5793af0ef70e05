"""Prompt templates over a row's fields."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from pybatch.api.protocols.request_error import RequestError

BRACES = re.compile(r"\{\{|\}\}|\{[^{}]*\}|[{}]")
FIELD = re.compile(r"\{\s*[^{}!:\s][^{}!:]*\}")


class TemplateError(ValueError):
    """Text that is no template. offset: of the character at fault."""

    def __init__(self, message: str, offset: int) -> None:
        super().__init__(f"{message}; write {{{{ and }}}} for braces that are text")
        self.offset = offset


class Template:
    """Text with {field} where a row's field goes; {{ and }} stand for braces.

    Raises TemplateError if the text is not such a template.
    """

    def __init__(self, text: str) -> None:
        self.parts: list[tuple[str, str | None]] = []
        literal, start = "", 0
        for brace in BRACES.finditer(text):
            literal += text[start : brace.start()]
            start, found = brace.end(), brace[0]
            if found in ("{{", "}}"):
                literal += found[0]
            elif len(found) == 1:
                raise TemplateError(f"a single {found!r}", brace.start())
            elif not FIELD.fullmatch(found):
                raise TemplateError("only {field} is known", brace.start())
            else:
                self.parts.append((literal, found[1:-1]))
                literal = ""
        literal += text[start:]
        if literal or not self.parts:
            self.parts.append((literal, None))

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
