"""Makes prompts of rows."""

from __future__ import annotations

from dataclasses import dataclass

from pybatch.api.inputs import Conversation, Message, Prompt
from pybatch.jobs.reader import Row
from pybatch.jobs.template import Template


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
