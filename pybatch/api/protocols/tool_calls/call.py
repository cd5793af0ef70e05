"""A call of a tool, and what a form of calls is."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any, Protocol

Tools = Mapping[str, Mapping[str, Any]]
"""By name what a request says of each: its "function"."""


@dataclass(frozen=True, slots=True)
class ToolCall:
    """arguments: an object as JSON."""

    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class Found:
    """Calls, and where in the text they end."""

    calls: tuple[ToolCall, ...]
    end: int


class Unread(Enum):
    """Why there are no calls yet: more text has to come, or it is none."""

    MORE = auto()
    TEXT = auto()


class CallForm(Protocol):
    """A form in which models write calls.

    marks: what calls begin with. first_marks: what they begin with where nothing but whitespace comes before. closing:
    further texts that are part of a call, which may be special tokens as marks may.
    """

    @property
    def marks(self) -> tuple[str, ...]: ...

    @property
    def first_marks(self) -> tuple[str, ...]: ...

    @property
    def closing(self) -> tuple[str, ...]: ...

    def read(self, text: str, tools: Tools, *, last: bool) -> Found | Unread:
        """Of a text that begins with a mark. What is found in it, or that it is no call, holds whatever may follow.

        last: nothing follows.
        """
        ...


def tool_call(name: object, arguments: object, tools: Tools) -> ToolCall | None:
    """None if it is no call of one of these tools."""
    if not isinstance(name, str) or name not in tools:
        return None
    if isinstance(arguments, str):  # some models write the object as text
        arguments = parse_json(arguments)
    if arguments is None:
        arguments = {}
    if not isinstance(arguments, dict):
        return None
    try:
        text = json.dumps(arguments, ensure_ascii=False, allow_nan=False)
        text.encode()
    except (TypeError, ValueError, RecursionError):  # values that JSON lacks, surrogates
        return None
    return ToolCall(name, text)


def parse_json(text: str) -> object:
    """Its value; the class NotJson if it has none."""
    try:
        return json.loads(text, parse_constant=refuse)
    except (ValueError, RecursionError):
        return NotJson


class NotJson:
    """In place of the value of a text that is no JSON."""


def refuse(constant: str) -> None:
    raise ValueError(constant)
