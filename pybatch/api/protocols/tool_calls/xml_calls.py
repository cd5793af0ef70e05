"""Qwen3-Coder's calls: tags with the name of the function and of each parameter around its value."""

from __future__ import annotations

import re
from collections.abc import Mapping

from pybatch.api.protocols.tool_calls.call import Found, NotJson, Tools, Unread, parse_json, tool_call

MARK, CLOSING = "<tool_call>", "</tool_call>"
NAME = re.compile(r"<tool_call>\s*<function=([^>]*)>")
PARAMETER = re.compile(r"\s*<parameter=([^>]*)>\n?(.*?)\n?</parameter>", re.DOTALL)
END = re.compile(r"\s*</function>\s*</tool_call>")
BEGINNING = re.compile(r"<tool_call>\s*")


class XmlCalls:
    marks = (MARK,)
    first_marks = ()
    closing = (CLOSING,)

    def read(self, text: str, tools: Tools, *, last: bool) -> Found | Unread:
        name = NAME.match(text)
        if name is None:
            rest = text[BEGINNING.match(text).end() :]  # type: ignore[union-attr]
            return Unread.MORE if "<function=".startswith(rest[:10]) and ">" not in rest else Unread.TEXT
        if name[1] not in tools:
            return Unread.TEXT
        types = parameter_types(tools[name[1]])
        arguments, at = {}, name.end()
        while (parameter := PARAMETER.match(text, at)) is not None:
            arguments[parameter[1]] = typed(parameter[2], types.get(parameter[1]))
            at = parameter.end()
        end = END.match(text, at)
        if end is not None:
            call = tool_call(name[1], arguments, tools)
            return Unread.TEXT if call is None else Found((call,), end.end())
        rest = text[at:].lstrip()
        if any(tag.startswith(rest[: len(tag)]) for tag in ("<parameter=", "</function>")):
            after = rest.removeprefix("</function>").lstrip()
            return Unread.MORE if rest == after or CLOSING.startswith(after) else Unread.TEXT
        return Unread.TEXT


def parameter_types(function: Mapping[str, object]) -> dict[str, object]:
    schema = function.get("parameters")
    properties = schema.get("properties") if isinstance(schema, Mapping) else None
    items = properties.items() if isinstance(properties, Mapping) else ()
    return {str(name): each.get("type") if isinstance(each, Mapping) else None for name, each in items}


def typed(text: str, kind: object) -> object:
    """The text where the tool's schema says that it is one, or it is no JSON."""
    if kind == "string":
        return text
    value = parse_json(text)
    return text if value is NotJson else value


XML = XmlCalls()
