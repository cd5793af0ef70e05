"""Anthropic's messages and tools as chat templates take them, which is as OpenAI has them."""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from typing import Any

from pybatch.api.protocols.fields import expect_type
from pybatch.api.protocols.messages import expect_role, expect_unicode
from pybatch.api.protocols.request_error import RequestError

ROLES = ("user", "assistant", "system")

Message = dict[str, Any]


def read_messages(system: Any, messages: Any) -> list[Message]:
    """The conversation, with text as content. Messages of one role that follow each other are one turn, as Anthropic
    has it. Raises RequestError."""
    expect_type("messages", messages, list, "a list")
    if not messages:
        raise RequestError("messages: expected a list of at least one message, got []", "invalid_value", "messages")
    turns: list[Message] = []
    if system not in (None, "", []):
        for block in read_blocks("system", system):
            add(turns, text_message("system", "system", block))
    called: dict[str, str] = {}  # names of tools by the ids of their calls
    for number, message in enumerate(messages):
        where = f"messages[{number}]"
        expect_type(where, message, Mapping, "{'role': ..., 'content': ...}")
        role = expect_role(f"{where}.role", message.get("role"), ROLES)
        where += ".content"
        for block in read_blocks(where, message.get("content")):
            kind = block.get("type")
            if kind == "tool_use" and role == "assistant":
                add(turns, call_message(where, block, called))
            elif kind == "tool_result" and role == "user":
                turns.append(result_message(where, block, called))
            else:
                add(turns, text_message(where, role, block))
    return turns


def add(turns: list[Message], message: Message) -> None:
    """Joins it to the last turn if that is of the same role."""
    if not turns or turns[-1]["role"] != message["role"]:
        turns.append(message)
        return
    last = turns[-1]
    last["content"] = "\n".join(text for text in (last["content"], message["content"]) if text)
    if "tool_calls" in message:
        last["tool_calls"] = [*last.get("tool_calls", ()), *message["tool_calls"]]


def read_blocks(where: str, content: Any) -> list[Mapping[str, Any]]:
    """Text, or nothing, is one block of type text."""
    if isinstance(content, str) or content == []:
        return [{"type": "text", "text": content or ""}]
    if not isinstance(content, list) or not all(isinstance(block, Mapping) for block in content):
        raise RequestError(
            f"{where}: expected text or a list of blocks, got {reprlib.repr(content)}", "invalid_value", where
        )
    return content


def text_message(where: str, role: str, block: Mapping[str, Any]) -> Message:
    if block.get("type") != "text" or not isinstance(block.get("text"), str):
        others = {"assistant": " or 'tool_use'", "user": " or 'tool_result'"}.get(role, "")
        raise RequestError(
            f"{where}: expected text or blocks of type 'text'{others}, got {reprlib.repr(block)}",
            "invalid_value",
            where,
        )
    expect_unicode(where, block["text"])
    return {"role": role, "content": block["text"]}


def call_message(where: str, block: Mapping[str, Any], called: dict[str, str]) -> Message:
    """A tool_use block as an assistant's message; notes the call."""
    id = expect_type(f"{where}.id", block.get("id"), str, "text")
    called[id] = expect_type(f"{where}.name", block.get("name"), str, "text")
    arguments = expect_type(f"{where}.input", block.get("input"), Mapping, "an object")
    call = {"id": id, "type": "function", "function": {"name": called[id], "arguments": arguments}}
    return {"role": "assistant", "content": "", "tool_calls": [call]}


def result_message(where: str, block: Mapping[str, Any], called: Mapping[str, str]) -> Message:
    id = expect_type(f"{where}.tool_use_id", block.get("tool_use_id"), str, "text")
    if id not in called:
        name = f"{where}.tool_use_id"
        raise RequestError(f"{name}: expected the id of an earlier tool_use, got {id!r:.80}", "invalid_value", name)
    content = block.get("content")
    blocks = [] if content in (None, []) else read_blocks(f"{where}.content", content)
    texts = [text_message(f"{where}.content", "tool", each)["content"] for each in blocks]
    return {"role": "tool", "tool_call_id": id, "name": called[id], "content": "\n".join(texts)}


def read_tools(tools: Any) -> list[dict[str, Any]]:
    """Functions with JSON schemas, of tools that the client runs. Raises RequestError."""
    return [
        read_tool(f"tools[{number}]", tool)
        for number, tool in enumerate(expect_type("tools", tools, list, "a list of objects"))
    ]


def read_tool(where: str, tool: Any) -> dict[str, Any]:
    expect_type(where, tool, Mapping, "an object")
    if tool.get("type") not in (None, "custom"):
        raise RequestError(
            f"{where}.type: not supported here; expected 'custom', since the server runs no tools, got "
            f"{tool['type']!r:.80}",
            "unsupported_parameter",
            f"{where}.type",
        )
    function = {"name": expect_type(f"{where}.name", tool.get("name"), str, "text")}
    if tool.get("description") is not None:
        function["description"] = expect_type(f"{where}.description", tool["description"], str, "text")
    function["parameters"] = expect_type(
        f"{where}.input_schema", tool.get("input_schema"), Mapping, "a JSON schema as an object"
    )
    return {"type": "function", "function": function}
