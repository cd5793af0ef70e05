"""Whether an answer may, or has to, call tools: tool_choice as OpenAI has it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from pybatch.api.protocols.request_error import RequestError
from pybatch.api.protocols.tool_calls.call import Tools
from pybatch.api.protocols.tool_calls.forced import schema_of

NAME = re.compile(r"[\w.-]+")
CONSTRAINTS = ("structured_outputs", "guided_json", "guided_regex", "guided_choice", "guided_grammar")


def tools_by_name(tools: Sequence[Mapping[str, Any]]) -> Tools:
    functions = [tool.get("function", tool) for tool in tools]
    return {str(each["name"]): each for each in functions if isinstance(each, Mapping) and "name" in each}


def is_forced(choice: Any) -> bool:
    """Of a choice that is proper: whether the answer has to be calls."""
    return choice == "required" or isinstance(choice, Mapping)


def named_tool(choice: Any) -> str | None:
    """The name of the only tool that an answer has to call, if the choice is one."""
    return choice["function"]["name"] if isinstance(choice, Mapping) else None


def expect_choice(body: Mapping[str, Any]) -> None:
    """Raises RequestError for a choice that is not known, or that the body's tools do not allow."""
    choice, tools = body.get("tool_choice"), body.get("tools")
    if choice in (None, "auto", "none"):
        return
    if choice != "required":
        function = choice.get("function") if isinstance(choice, Mapping) and choice.get("type") == "function" else None
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            expected = "'auto', 'none', 'required' or {'type': 'function', 'function': {'name': ...}}"
            raise refused(f"tool_choice: expected {expected}, got {choice!r:.80}", "tool_choice")
    if not tools:
        raise refused("tool_choice: expected tools beside it, of which one is to be called", "tool_choice")
    for number, tool in enumerate(tools):
        expect_callable(f"tools[{number}]", tool)
    name, known = named_tool(choice), tools_by_name(tools)
    if name is not None and name not in known:
        raise refused(f"tool_choice: expected one of {', '.join(known):.80}, got {name!r:.80}", "tool_choice")
    for other in CONSTRAINTS:
        if body.get(other) is not None:
            raise refused(f"{other}: expected none where a call is asked for", other)


def expect_callable(where: str, tool: Mapping[str, Any]) -> None:
    """Raises RequestError for a tool of which a call could not be made or read."""
    function = tool.get("function", tool)
    name = function.get("name") if isinstance(function, Mapping) else None
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise refused(f"{where}: expected a function with a name of letters, digits, '_', '-' and '.'", where)
    try:
        schema_of(function)
    except (ValueError, TypeError, RecursionError) as error:
        raise refused(f"{where}.parameters: {error}", f"{where}.parameters") from None


def refused(message: str, param: str) -> RequestError:
    return RequestError(message, "invalid_value", param)
