"""Makes prompts of rows."""

from __future__ import annotations

import json
import string
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pybatch.api.inputs import Conversation, Message, Prompt
from pybatch.jobs.reader import Row


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
        """Puts in the fields: text as it is, everything else as JSON. Raises ValueError if one is missing."""
        return "".join(literal + (self.value(fields, name) if name is not None else "") for literal, name in self.parts)

    def value(self, fields: Mapping[str, Any], name: str) -> str:
        if name not in fields:
            raise ValueError(f"the template asks for {name!r}; the row has {', '.join(map(repr, fields)) or 'nothing'}")
        value = fields[name]
        return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


@dataclass(frozen=True)
class PromptMaker:
    """Makes a prompt of a row.

    template: filled in with the row's fields; None takes the row's "messages" or "prompt". system: the text of a system
    message to put in front. chat: text becomes a user's message; if False, the model completes it as it is.
    """

    template: Template | None = None
    system: str | None = None
    chat: bool = True

    def __call__(self, row: Row) -> Prompt:
        """Raises ValueError if the row has no prompt."""
        if row.error is not None:
            raise ValueError(row.error)
        if self.template is None and "messages" in row.fields:
            messages = row.fields["messages"]
            if not isinstance(messages, list):
                raise ValueError(f"messages: expected a list, got {type(messages).__name__}")
            return self.conversation(messages)
        text = row.fields.get("prompt") if self.template is None else self.template.fill(row.fields)
        if text is None:
            raise ValueError("the row has neither 'prompt' nor 'messages'")
        if not isinstance(text, str):
            raise ValueError(f"prompt: expected text, got {type(text).__name__}")
        return self.conversation([{"role": "user", "content": text}]) if self.chat else text

    def conversation(self, messages: list[Message]) -> Conversation:
        return Conversation(
            messages if self.system is None else [{"role": "system", "content": self.system}, *messages]
        )
