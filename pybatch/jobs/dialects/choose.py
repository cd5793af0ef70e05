"""Which dialect a job's rows are in."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pybatch.engine.lora_request import LoRARequest
from pybatch.jobs.dialect import Dialect
from pybatch.jobs.dialects.anthropic_batch import AnthropicBatch
from pybatch.jobs.dialects.mapped import MappedRows
from pybatch.jobs.dialects.openai_batch import OpenAIBatch
from pybatch.jobs.dialects.plain import PlainDialect
from pybatch.jobs.dialects.template import Template

ROWS, OPENAI, ANTHROPIC = DIALECTS = ("rows", "openai-batch", "anthropic-batch")


def detect(fields: Mapping[str, Any]) -> str:
    """Which of DIALECTS a job is in, by the fields of its first row that could be read."""
    if "custom_id" in fields:
        if isinstance(fields.get("body"), Mapping):
            return OPENAI
        if isinstance(fields.get("params"), Mapping):
            return ANTHROPIC
    return ROWS


def dialect_of(
    name: str | None,
    first: Mapping[str, Any],
    *,
    created: int,
    template: Template | None = None,
    system: str | None = None,
    chat: bool = True,
    output: Mapping[str, Template] | None = None,
    adapters: Mapping[str, LoRARequest] | None = None,
) -> Dialect:
    """The dialect of one of DIALECTS' names; of None, the one that the rows are in.

    first: the fields of the first row that could be read, {} if there is none. created: when the job began, in seconds
    since 1970. template, system, chat: of pybatch's own rows, which a template makes of any. output: as MappedRows' has
    it. adapters: LoRA adapters by the names that rows may call as their model. Raises ValueError, naming the argument,
    where the rows say all that these would say.
    """
    if name is None:
        name = ROWS if template is not None else detect(first)
    if name not in DIALECTS:
        raise ValueError(f"format: expected one of {', '.join(DIALECTS)}, got {name!r}")
    if name == ROWS:
        plain = template, system, chat
        if output is None:
            return PlainDialect(*plain, adapters=adapters or {})
        return MappedRows(*plain, output, adapters=adapters or {})
    for argument, given in (
        ("template", template is not None),
        ("system", system is not None),
        ("raw", not chat),
        ("output", output is not None),
    ):
        if given:
            raise ValueError(f"{argument}: rows of {name} say themselves what the prompt is")
    if name == ANTHROPIC:
        return AnthropicBatch(adapters=adapters or {})
    body = first.get("body")
    model = body.get("model") if isinstance(body, Mapping) else None
    named = model if isinstance(model, str) and model not in (adapters or {}) else None
    return OpenAIBatch(created, named, adapters=adapters or {})
