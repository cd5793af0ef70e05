"""Mistral's calls: a list of JSON objects, or since its 2025 models a name and an object with the arguments."""

from __future__ import annotations

import json
import re

from pybatch.api.protocols.tool_calls.brackets import JSON_PARTS, end_of_value
from pybatch.api.protocols.tool_calls.call import Found, Tools, Unread, parse_json, tool_call
from pybatch.api.protocols.tool_calls.forced import SpecialTokens, call_rules, lines, object_rules, schema_of, written
from pybatch.api.protocols.tool_calls.json_calls import read_values

MARK, ARGUMENTS = "[TOOL_CALLS]", "[ARGS]"
NAMED = re.compile(r"\s*([\w.-]+)(?:\[CALL_ID\][\w-]+)?(?:\[ARGS\])?\s*(?=\{)")
BEGINNING = re.compile(r"\s*[\w.-]+(?:\[[\w\[\]-]*)?\s*\Z")
SPACE = re.compile(r"\s*")


class MistralCalls:
    marks = (MARK,)
    first_marks = ()
    closing = (ARGUMENTS, "[CALL_ID]")

    def read(self, text: str, tools: Tools, *, last: bool) -> Found | Unread:
        begin = SPACE.match(text, len(MARK)).end()  # type: ignore[union-attr]
        if begin == len(text):
            return Unread.MORE
        if text[begin] in "[{":
            return read_values(text, begin, tools, (), last=last)
        match = NAMED.match(text, begin)
        if match is None:
            return Unread.MORE if BEGINNING.match(text, begin) else Unread.TEXT
        if match[1] not in tools:
            return Unread.TEXT
        end = end_of_value(text, match.end(), JSON_PARTS)
        if isinstance(end, Unread):
            return end
        call = tool_call(match[1], parse_json(text[match.end() : end]), tools)
        return Unread.TEXT if call is None else Found((call,), end)

    def grammar(self, tools: Tools, special: SpecialTokens, *, several: bool) -> str:
        mark = written(MARK, special)
        if ARGUMENTS in special:
            before = written(ARGUMENTS, special)
            named = [f"{mark} {json.dumps(name)} {before} {schema_of(tools[name])}" for name in tools]
            return lines("start: call+" if several else "start: call", *call_rules(named))
        more = '(", " call)*' if several else ""
        return lines(f'start: {mark} "[" call {more} "]"', *object_rules(tools, "arguments"))


MISTRAL = MistralCalls()
