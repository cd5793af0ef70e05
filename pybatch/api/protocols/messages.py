"""Checks the messages of a conversation without a tokenizer, before any model is loaded."""

from __future__ import annotations

from typing import Any

from pybatch.api.inputs import Message, plain_messages
from pybatch.api.protocols.request_error import RequestError
from pybatch.engine.arguments import nearest

ROLES = ("system", "developer", "user", "assistant", "tool", "function")
"""OpenAI's."""

TEMPLATE_ROLES = ("ipython", "environment", "observation", "model", "tool_response", "document", "context")
"""Further ones that chat templates of published models know."""


def expect_messages(messages: Any, *, roles: tuple[str, ...] = ROLES) -> list[Message]:
    """The messages. Raises RequestError for what is not a list of messages of these roles with text."""
    if not isinstance(messages, list):
        raise RequestError(f"messages: expected a list, got {type(messages).__name__}", "invalid_type", "messages")
    try:
        plain = plain_messages(messages)
    except ValueError as error:
        raise RequestError(str(error), "invalid_value", "messages") from None
    for number, message in enumerate(plain):
        where = f"messages[{number}]"
        expect_role(f"{where}.role", message["role"], roles)
        expect_unicode(f"{where}.content", message["content"])
    return messages


def expect_role(where: str, role: Any, roles: tuple[str, ...]) -> str:
    """The role. Raises RequestError if it is none of these."""
    if not isinstance(role, str) or role not in roles:
        near = nearest(role, roles) if isinstance(role, str) else None
        hint = f"did you mean {near!r}?" if near else f"expected one of {', '.join(roles)}"
        raise RequestError(f"{where}: unknown role {role!r:.80}; {hint}", "invalid_value", where)
    return role


def expect_unicode(name: str, text: str) -> None:
    """Raises RequestError for unpaired surrogates, which no tokenizer can read."""
    if text.isascii():
        return
    try:
        text.encode()
    except UnicodeEncodeError as error:
        half = ascii(text[error.start])
        raise RequestError(
            f"{name}: expected Unicode text, got the unpaired surrogate {half} at character {error.start}",
            "invalid_value",
            name,
        ) from None
