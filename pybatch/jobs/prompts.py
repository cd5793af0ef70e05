"""From a row to the prompt it asks for."""

from __future__ import annotations

import json
import string
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


class Template:
    """Text with {field} where a row's field goes; {{ and }} stand for braces.

    ValueError where the text is no such template.
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
        """ValueError where a field is missing. Text goes in as it is, everything else as JSON."""
        return "".join(literal + (self.value(fields, name) if name is not None else "") for literal, name in self.parts)

    def value(self, fields: Mapping[str, Any], name: str) -> str:
        if name not in fields:
            raise ValueError(f"the template asks for {name!r}; the row has {', '.join(map(repr, fields)) or 'nothing'}")
        value = fields[name]
        return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


@dataclass(frozen=True)
class PromptMaker:
    """Makes text (to be completed as it is) or a conversation of each row's fields.

    template: fills in the fields; without one, "messages" or "prompt" of the row are taken. system: a system message
    in front. chat: text becomes a user message; else it is the whole prompt.
    """

    template: Template | None = None
    system: str | None = None
    chat: bool = True

    def __call__(self, fields: Mapping[str, Any]) -> str | list[dict[str, Any]]:
        """ValueError where the row holds no prompt."""
        if self.template is None and "messages" in fields:
            if not isinstance(fields["messages"], list):
                raise ValueError(f"'messages' must be a list, got {type(fields['messages']).__name__}")
            return [*self.opening(), *fields["messages"]]
        text = fields.get("prompt") if self.template is None else self.template.fill(fields)
        if text is None:
            raise ValueError("the row has neither 'prompt' nor 'messages'")
        if not isinstance(text, str):
            raise ValueError(f"'prompt' must be text, got {type(text).__name__}")
        return [*self.opening(), {"role": "user", "content": text}] if self.chat else text

    def opening(self) -> list[dict[str, Any]]:
        return [] if self.system is None else [{"role": "system", "content": self.system}]
