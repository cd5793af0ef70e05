"""Calls written as Python's: a list of calls with keyword arguments that are literals."""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass

from pybatch.api.protocols.tool_calls.brackets import PYTHON_PARTS, end_of_value
from pybatch.api.protocols.tool_calls.call import Found, ToolCall, Tools, Unread, tool_call

SPACE = re.compile(r"\s*")
BEGINNING = re.compile(r"\[\s*(?:[^\W\d][\w.]*\s*(?:\(|\Z)|\Z)")
JSON_NAMES = {"true": True, "false": False, "null": None}  # which models write for Python's


@dataclass(frozen=True)
class PythonCalls:
    marks: tuple[str, ...] = ()
    closing: tuple[str, ...] = ()
    first_marks: tuple[str, ...] = ("[",)

    def read(self, text: str, tools: Tools, *, last: bool) -> Found | Unread:
        mark = next((mark for mark in self.marks if text.startswith(mark)), "")
        begin = SPACE.match(text, len(mark)).end()  # type: ignore[union-attr]
        if begin == len(text):
            return Unread.MORE
        if not BEGINNING.match(text, begin):
            return Unread.TEXT
        end = end_of_value(text, begin, PYTHON_PARTS)
        if isinstance(end, Unread):
            return end
        calls = calls_of(text[begin:end], tools)
        if calls is None:
            return Unread.TEXT
        if not mark:
            return Found(calls, end)
        after = SPACE.match(text, end).end()  # type: ignore[union-attr]
        for closing in self.closing:
            if text.startswith(closing, after):
                return Found(calls, after + len(closing))
        if not last and any(closing.startswith(text[after:]) for closing in self.closing):
            return Unread.MORE
        return Found(calls, end)


def calls_of(text: str, tools: Tools) -> tuple[ToolCall, ...] | None:
    try:
        listed = ast.parse(text, mode="eval").body
        if not isinstance(listed, ast.List) or not listed.elts:
            return None
        calls = [call_of(each, tools) for each in listed.elts]
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):  # MemoryError: the parser's, of its depth
        return None
    found = tuple(call for call in calls if call is not None)
    return found if len(found) == len(calls) else None


def call_of(node: ast.expr, tools: Tools) -> ToolCall | None:
    if not isinstance(node, ast.Call) or node.args or any(each.arg is None for each in node.keywords):
        return None
    return tool_call(ast.unparse(node.func), {each.arg: literal(each.value) for each in node.keywords}, tools)


def literal(node: ast.expr) -> object:
    """Raises ValueError if it is no literal."""
    return ast.literal_eval(JsonNames().visit(node))


class JsonNames(ast.NodeTransformer):
    def visit_Name(self, node: ast.Name) -> ast.expr:
        return ast.Constant(JSON_NAMES[node.id]) if node.id in JSON_NAMES else node


PYTHON = PythonCalls()
"""Of models that Llama 3.2's and 4's notes tell to write so."""
LFM = PythonCalls(("<|tool_call_start|>",), ("<|tool_call_end|>",), first_marks=())
"""LFM2's."""
