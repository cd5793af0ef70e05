"""What a request's tools mean for its answer."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from pybatch.api.protocols.request_error import RequestError
from pybatch.api.protocols.tool_calls.call import CallForm, ToolCall, Tools
from pybatch.api.protocols.tool_calls.choice import is_forced, named_tool, tools_by_name
from pybatch.api.protocols.tool_calls.choose import FORCED, call_form
from pybatch.api.protocols.tool_calls.marks import Marks
from pybatch.api.protocols.tool_calls.mistral import MISTRAL
from pybatch.api.protocols.tool_calls.reader import CallReader
from pybatch.engine.structured.params import StructuredOutputsParams

if TYPE_CHECKING:
    from pybatch.model.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class ToolUse:
    """How calls of a request's tools are read in the answers to it.

    params: sampling parameters that the form of the calls needs: its marks may be special tokens, which the text lacks
    otherwise; hidden: the other ones then. If calls are forced, a grammar of them too. before: the end of the prompt
    that the answer goes on with. most: calls that an answer may have. named: the request names the tool to be called.
    """

    form: CallForm
    tools: Tools
    params: Mapping[str, Any]
    hidden: Marks | None
    before: str
    most: int | None = None
    named: bool = False

    def reader(self) -> CallReader:
        """For one answer."""
        return CallReader(self.form, self.tools, hidden=self.hidden, before=self.before, most=self.most)

    def call(self, call: ToolCall, response: str, choice: int, number: int) -> dict[str, Any]:
        """As OpenAI's API tells it. response: the response's id; number: of the calls of its choice."""
        name = hashlib.blake2b(f"{response}:{choice}:{number}".encode(), digest_size=12).hexdigest()
        id = name[:9] if self.form is MISTRAL else f"call_{name}"  # as Mistral's templates want it
        return {"id": id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}


def tool_use(body: Mapping[str, Any], tokenizer: Tokenizer | None) -> ToolUse | None:
    """Of a body that chat_request has taken. None without tools, and where the form of calls is not known unless they
    are forced. tokenizer: None if that is not known, and the form neither. Raises RequestError for forced calls of
    tools that are too large."""
    choice = body.get("tool_choice")
    if not body.get("tools") or choice == "none" or (tokenizer is None and not is_forced(choice)):
        return None
    form, special = (None, {}) if tokenizer is None else form_and_special_tokens(tokenizer)
    tools, named = tools_by_name(body["tools"]), named_tool(choice)
    most = 1 if named is not None or body.get("parallel_tool_calls") is False else None
    params: dict[str, Any] = {}
    if is_forced(choice):
        form = FORCED[form]
        called = tools if named is None else {named: tools[named]}
        params["structured_outputs"] = constraint(form.grammar(called, special, several=most is None))
    if form is None:
        return None
    shown = special.keys() & {*form.marks, *form.closing}
    hides = bool(shown) and body.get("skip_special_tokens") is not False
    if hides:
        params["skip_special_tokens"] = False
    hidden = marks_of(frozenset(special.keys() - shown)) if hides else None
    return ToolUse(form, tools, params, hidden, beginning(body), most, named is not None)


def form_and_special_tokens(tokenizer: Tokenizer) -> tuple[CallForm | None, dict[str, int]]:
    template = tokenizer.named_chat_templates.get("tool_use") or tokenizer.chat_template
    special = zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True)
    return None if template is None else form_of(template), dict(special)


def constraint(grammar: str) -> dict[str, str]:
    """As structured_outputs."""
    try:
        StructuredOutputsParams(grammar=grammar)
    except ValueError as error:
        said = str(error).removeprefix("structured_outputs: grammar: ")
        raise RequestError(f"tools: {said}", "invalid_value", "tools") from None
    return {"grammar": grammar}


form_of = lru_cache(maxsize=16)(call_form)
marks_of = lru_cache(maxsize=16)(Marks)


def beginning(body: Mapping[str, Any]) -> str:
    """The text of the assistant's that the answer goes on with."""
    last = body["messages"][-1]
    if not body.get("continue_final_message") or last["role"] != "assistant":
        return ""
    content = last.get("content")
    return content if isinstance(content, str) else ""
