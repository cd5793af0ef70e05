"""pybatch's own rows: a prompt or messages beside data that is kept, and the answer in fields after it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from pybatch.api.inputs import Conversation, Prompt, is_token_ids
from pybatch.api.lora_names import adapter_params
from pybatch.api.outcomes import Answer, Failure, Outcome
from pybatch.api.protocols.messages import ROLES, TEMPLATE_ROLES, expect_messages, expect_unicode
from pybatch.api.protocols.request_error import RequestError
from pybatch.engine.lora_request import LoRARequest
from pybatch.jobs.dialect import RowRequest
from pybatch.jobs.dialects.row_params import from_json, row_params, row_standing
from pybatch.jobs.dialects.template import Template
from pybatch.jobs.rows import Row

RESULT_FIELDS = (
    "row",
    "response",
    "finish_reason",
    "usage",
    "logprobs",
    "prompt_logprobs",
    "error",
    "cached",
    "prompt_version",
)


@dataclass(frozen=True)
class PlainDialect:
    """Rows with "messages", a "prompt" or "prompt_token_ids", or with the fields of a template, and with sampling
    parameters.

    adapters: LoRA adapters by the names that a row's "model" may be; of a template's row any other is its own data.
    template: filled in with the row's fields; None takes the row's "messages" or "prompt". system: the text of a system
    message to put in front. chat: text becomes a user's message; if False, the model completes it as it is.
    """

    name: ClassVar[str] = "rows"
    apart: ClassVar[bool] = False
    extends_rows: ClassVar[bool] = True

    template: Template | None = None
    system: str | None = None
    chat: bool = True
    adapters: Mapping[str, LoRARequest] = field(default_factory=dict, kw_only=True)

    def request(self, row: Row) -> RowRequest:
        if row.error is not None:
            raise RequestError(row.error, "invalid_json_line")
        name = row.fields.get("custom_id")  # which no two rows of a batch may share; an "id" is the row's own affair
        id = name if isinstance(name, str) else None
        params = {**row_params(row.fields), **self.adapter(row.fields.get("model"))}
        return RowRequest((self.prompt(row.fields),), params, id, row_standing(row.fields))

    def adapter(self, model: Any) -> dict[str, LoRARequest]:
        if self.adapters and self.template is None and model not in (None, "", *self.adapters):
            known = " or ".join(map(repr, self.adapters))
            raise RequestError(f"model: expected {known}, or none, got {model!r:.80}", "model_not_found", "model")
        return adapter_params(model, self.adapters)

    def prompt(self, fields: dict[str, Any]) -> Prompt:
        if self.template is not None:
            return self.text(self.template.fill(fields))
        if fields.get("messages") is not None:
            return self.conversation(expect_messages(from_json(fields["messages"]), roles=ROLES + TEMPLATE_ROLES))
        ids = from_json(fields.get("prompt_token_ids"))
        if ids not in (None, ""):
            return self.token_ids("prompt_token_ids", ids)
        prompt = fields.get("prompt")
        if prompt is None and "prompt" in fields:
            raise RequestError("prompt: expected text, got null", "missing_required_parameter", "prompt")
        if prompt is None:
            has = f", but {', '.join(map(repr, fields)):.80}" if fields else ""
            raise RequestError(
                f"the row has neither 'prompt' nor 'messages'{has}", "missing_required_parameter", "prompt"
            )
        return self.token_ids("prompt", prompt) if isinstance(prompt, list) else self.text(prompt)

    def text(self, text: Any) -> Prompt:
        if not isinstance(text, str):
            raise RequestError(f"prompt: expected text, got {type(text).__name__}", "invalid_type", "prompt")
        expect_unicode("prompt", text)
        return self.conversation([{"role": "user", "content": text}]) if self.chat else text

    def token_ids(self, name: str, ids: Any) -> list[int]:
        """Of a whole prompt, with whatever the chat template would have put around it."""
        if not (isinstance(ids, list) and ids and is_token_ids(ids) and min(ids) >= 0):
            raise RequestError(f"{name}: expected text or a list of token ids, got {ids!r:.80}", "invalid_type", name)
        if self.system is not None:
            raise RequestError(f"{name}: no system message can stand in front of token ids", "invalid_value", name)
        return ids

    def conversation(self, messages: list[Any]) -> Conversation:
        system = [] if self.system is None else [{"role": "system", "content": self.system}]
        return Conversation([*system, *messages])

    def prepared(self, rows: Iterator[Row], *, wait: bool) -> Iterator[Row]:
        return rows

    def result(self, row: Row, outcome: Outcome, *, fields: bool = True) -> dict[str, Any]:
        """The row's own fields, then its number and the answer. With n > 1 what belongs to one sample becomes a list,
        one item a sample."""
        own = kept(row.fields) if fields else {}
        if isinstance(outcome, Failure):
            return {**own, "row": row.index, "error": f"{row.place}: {outcome.message}"}
        return {**own, "row": row.index, **answer_fields(outcome)}


def answer_fields(answer: Answer) -> dict[str, Any]:
    samples = answer.samples
    fields = {
        "response": one_or_all([sample.text for sample in samples]),
        "finish_reason": one_or_all([sample.finish_reason for sample in samples]),
        "usage": {"prompt_tokens": answer.prompt_tokens, "completion_tokens": answer.output_tokens},
    }
    if samples[0].logprobs is not None:
        fields["logprobs"] = one_or_all([sample.logprobs for sample in samples])
    if answer.prompt_logprobs is not None:
        fields["prompt_logprobs"] = answer.prompt_logprobs
    return fields


def one_or_all(items: list[Any]) -> Any:
    return items[0] if len(items) == 1 else items


def kept(fields: dict[str, Any]) -> dict[str, Any]:
    """A row's fields. One that has one of RESULT_FIELDS' names is kept as "input_<name>", so that the results of one
    job can be the input of the next."""
    own = {}
    for name, value in fields.items():
        if name in RESULT_FIELDS:
            name = f"input_{name}"
            while name in fields:
                name = f"input_{name}"
        own[name] = value
    return own
