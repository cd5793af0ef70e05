"""Calls that are JSON: objects with a name and arguments, after a mark or alone."""

from __future__ import annotations

import re
from dataclasses import dataclass

from pybatch.api.protocols.tool_calls.brackets import JSON_PARTS, end_of_value
from pybatch.api.protocols.tool_calls.call import Found, ToolCall, Tools, Unread, parse_json, tool_call
from pybatch.api.protocols.tool_calls.forced import SpecialTokens, lines, object_rules, written

KEYS = ("name", "arguments", "parameters", "type", "function", "id")
SEPARATORS = re.compile(r"[\s;,]*")
NEWLINE = r"/\n?/"  # in a grammar
FIRST_KEY = re.compile(r'\{\s*(?:"([^"]*)("?)|\Z)')


@dataclass(frozen=True)
class JsonCalls:
    """One object, several, or a list of them. closing: what ends them, where there is a mark for it.

    The others say how calls are written where they are forced. arguments: an object's key. listed: in a list.
    """

    marks: tuple[str, ...] = ()
    closing: tuple[str, ...] = ()
    first_marks: tuple[str, ...] = ()
    arguments: str = "arguments"
    listed: bool = False

    def read(self, text: str, tools: Tools, *, last: bool) -> Found | Unread:
        mark = next((mark for mark in self.marks if text.startswith(mark)), "")
        return read_values(text, len(mark), tools, self.closing, last=last)

    def grammar(self, tools: Tools, special: SpecialTokens, *, several: bool) -> str:
        rules = object_rules(tools, self.arguments)
        begin, end = self._written_marks(special)
        if self.listed:
            more = '(", " call)*' if several else ""
            return lines(f'start: {begin} "[" call {more} "]" {end}', *rules)
        if begin:
            more = f"({NEWLINE} marked)*" if several else ""
            return lines(f"start: marked {more}", f"marked: {begin} {NEWLINE} call {NEWLINE} {end}", *rules)
        return lines('start: call ("; " call)*' if several else "start: call", *rules)

    def _written_marks(self, special: SpecialTokens) -> tuple[str, str]:
        """What is written before and after calls that are forced."""
        if self.first_marks:
            return "", ""
        begin, end = self.marks[0], self.closing[0]
        has_end = (begin in special) == (end in special)  # Granite has the former alone
        return written(begin, special), written(end, special) if has_end else ""


def read_values(text: str, at: int, tools: Tools, closing: tuple[str, ...], *, last: bool) -> Found | Unread:
    calls: list[ToolCall] = []
    end = at
    while True:
        at = matched(SEPARATORS, text, at)
        rest = text[at : at + 64]
        if any(rest.startswith(mark) for mark in closing) and calls:
            return Found(tuple(calls), at + next(len(mark) for mark in closing if rest.startswith(mark)))
        if not rest or any(mark.startswith(rest) for mark in closing):
            more: Found | Unread = Unread.MORE
        else:
            more = read_value(text, at, tools)
            if isinstance(more, Found):
                calls += more.calls
                at = end = more.end
                continue
        if more is Unread.MORE and not last:
            return more
        return Found(tuple(calls), end) if calls else Unread.TEXT


def read_value(text: str, at: int, tools: Tools) -> Found | Unread:
    """An object or a list of objects."""
    if text[at] not in "{[" or not may_be_call(text, at):
        return Unread.TEXT
    end = end_of_value(text, at, JSON_PARTS)
    if isinstance(end, Unread):
        return end
    value = parse_json(text[at:end])
    values = value if isinstance(value, list) else [value]
    calls = [call for each in values if (call := call_of(each, tools)) is not None]
    return Found(tuple(calls), end) if calls and len(calls) == len(values) else Unread.TEXT


def may_be_call(text: str, at: int) -> bool:
    """By the first key of an object, as far as it has come: other JSON is not to be held back."""
    if text[at] == "[":
        return True
    match = FIRST_KEY.match(text, at)
    if match is None:
        return False
    key, quote = match[1] or "", match[2]
    return key in KEYS if quote else any(each.startswith(key) for each in KEYS)


def call_of(value: object, tools: Tools) -> ToolCall | None:
    if not isinstance(value, dict):
        return None
    fields = (
        value["function"] if isinstance(value.get("function"), dict) else value
    )  # the former as OpenAI's API has it
    return tool_call(fields.get("name"), fields.get("arguments", fields.get("parameters")), tools)


def matched(pattern: re.Pattern[str], text: str, at: int) -> int:
    """Where the match ends, which may be empty."""
    match = pattern.match(text, at)
    return at if match is None else match.end()


HERMES = JsonCalls(("<tool_call>",), ("</tool_call>",))
"""Qwen's, Hermes', SmolLM's and Granite 4's."""
GRANITE = JsonCalls(("<|tool_call|>", "<tool_call>"), ("<|/tool_call|>", "</tool_call>"), listed=True)
"""Granite 3's and Phi-4's."""
LLAMA = JsonCalls(("<|python_tag|>", "<|python_start|>"), ("<|python_end|>",), ("{",), "parameters")
"""Llama 3's and 4's."""
PLAIN = JsonCalls(first_marks=("[", "{"))
"""Where the template has no form, or one that JSON cannot be held to."""
LFM_JSON = JsonCalls(("<|tool_call_start|>",), ("<|tool_call_end|>",), listed=True)
"""LFM2's, which can do both."""
