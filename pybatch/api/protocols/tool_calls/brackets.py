"""Where a bracketed value ends, of which the rest may not have come yet."""

from __future__ import annotations

import re

from pybatch.api.protocols.tool_calls.call import Unread

DOUBLE = r'"[^"\\]*(?:\\.[^"\\]*)*(?:"|\\?\Z)'
SINGLE = r"'[^'\\]*(?:\\.[^'\\]*)*(?:'|\\?\Z)"
TRIPLE = r"""("{3}|'{3})(?:[^\\]|\\.)*?(?:\1|\\?\Z)"""
JSON_PARTS = re.compile(rf"{DOUBLE}|[{{\[}}\]]", re.DOTALL)
PYTHON_PARTS = re.compile(rf"{TRIPLE}|{DOUBLE}|{SINGLE}|[({{\[)}}\]]", re.DOTALL)
"""Strings, to their ends or that of the text, and brackets."""


def end_of_value(text: str, begin: int, parts: re.Pattern[str]) -> int | Unread:
    """Of the value whose first bracket is at `begin`."""
    depth = 0
    for part in parts.finditer(text, begin):
        first = part[0][0]
        if first in "({[":
            depth += 1
        elif first in ")}]":
            depth -= 1
            if depth == 0:
                return part.end()
    return Unread.MORE
