"""What a request's tools mean for its answer."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from pybatch.api.protocols.tool_calls.call import CallForm, ToolCall, Tools
from pybatch.api.protocols.tool_calls.choose import call_form
from pybatch.api.protocols.tool_calls.marks import Marks
from pybatch.api.protocols.tool_calls.mistral import MISTRAL
from pybatch.api.protocols.tool_calls.reader import CallReader

if TYPE_CHECKING:
    from pybatch.model.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class ToolUse:
    """How calls of a request's tools are read in the answers to it.

    params: sampling parameters that the form of the calls needs: its marks may be special tokens, which the text lacks
    otherwise; hidden: the other ones then. before: the end of the prompt that the answer goes on with. most: calls that
    an answer may have.
    """

    form: CallForm
    tools: Tools
    params: Mapping[str, Any]
    hidden: Marks | None
    before: str
    most: int | None = None

    def reader(self) -> CallReader:
        """For one answer."""
        return CallReader(self.form, self.tools, hidden=self.hidden, before=self.before, most=self.most)

    def call(self, call: ToolCall, response: str, choice: int, number: int) -> dict[str, Any]:
        """As OpenAI's API tells it. response: the response's id; number: of the calls of its choice."""
        name = hashlib.blake2b(f"{response}:{choice}:{number}".encode(), digest_size=12).hexdigest()
        id = name[:9] if self.form is MISTRAL else f"call_{name}"  # as Mistral's templates want it
        return {"id": id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}


def tool_use(body: Mapping[str, Any], tokenizer: Tokenizer | None) -> ToolUse | None:
    """Of a body that chat_request has taken. None without tools, and where the form of calls is not known."""
    if not body.get("tools") or body.get("tool_choice") == "none" or tokenizer is None:
        return None
    template = tokenizer.named_chat_templates.get("tool_use") or tokenizer.chat_template
    form = None if template is None else form_of(template)
    if form is None:
        return None
    functions = [tool.get("function", tool) for tool in body["tools"]]
    tools = {str(each["name"]): each for each in functions if isinstance(each, Mapping) and "name" in each}
    special = frozenset(tokenizer.all_special_tokens)
    shown = special & {*form.marks, *form.closing}
    hides = bool(shown) and body.get("skip_special_tokens") is not False
    return ToolUse(
        form,
        tools,
        {"skip_special_tokens": False} if hides else {},
        marks_of(special - shown) if hides else None,
        beginning(body),
        1 if body.get("parallel_tool_calls") is False else None,
    )


form_of = lru_cache(maxsize=16)(call_form)
marks_of = lru_cache(maxsize=16)(Marks)


def beginning(body: Mapping[str, Any]) -> str:
    """The text of the assistant's that the answer goes on with."""
    last = body["messages"][-1]
    if not body.get("continue_final_message") or last["role"] != "assistant":
        return ""
    content = last.get("content")
    return content if isinstance(content, str) else ""
