"""A trace for each row of a job."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from random import getrandbits
from typing import Any, Self

from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode, TraceFlags

import pybatch
from pybatch.api.inputs import Conversation, Prompt
from pybatch.api.outcomes import Answer, Failure, Sample
from pybatch.engine.pooling_params import PoolingParams
from pybatch.jobs.check import check_row
from pybatch.jobs.dialect import RowRequest
from pybatch.jobs.dialects.template import Template
from pybatch.jobs.job import Job, Saved
from pybatch.latitude.trace_ids import trace_number
from pybatch.latitude.tracing import Tracing, cost_attributes
from pybatch.telemetry.attributes import first_token_attributes, known, model_attributes, pooling_operation
from pybatch.telemetry.resource import resource
from pybatch.telemetry.sender import SpanSender

SCOPE = InstrumentationScope("pybatch", pybatch.__version__)
SAMPLED = TraceFlags(TraceFlags.SAMPLED)


class RowTraces:
    """A context manager that watches a job, and sends a trace for each row that is saved. What is done of it in the
    engine's thread is to put the row into a queue.

    model: its name. price_per_hour: of the machine, in dollars; a row bears the share that its computed tokens have in
    those of the run so far.
    """

    def __init__(
        self, sender: SpanSender, job: Job, model: str, tracing: Tracing, price_per_hour: float | None = None
    ) -> None:
        self._sender, self.job, self.model = sender, job, plain(model)
        self._price_per_hour, self.content = price_per_hour, tracing.content
        self._id = job.journal.job_id
        self._session = None if tracing.session is None else Template(tracing.session)
        versions = {"prompt": tracing.prompt, "prompt_version": tracing.prompt_version}
        self._metadata = {name: Template(text) for name, text in tracing.metadata.items()}
        self._always = known({"job": self._id, **versions})
        self._attributes = known(
            {
                "latitude.tags": json.dumps(list(tracing.tags)) if tracing.tags else None,
                "gen_ai.prompt.name": tracing.prompt,
                "gen_ai.prompt.version": tracing.prompt_version,
            }
        )

    def __enter__(self) -> Self:
        self.job.watchers.append(self.take)
        return self

    def __exit__(self, *error: object) -> None:
        self.job.watchers.remove(self.take)
        self._sender.shutdown()

    def take(self, saved: Saved) -> None:
        span = getrandbits(64) or 1  # another one where a row that failed is run again
        context = SpanContext(trace_number(self._id, saved.row.index), span, is_remote=False, trace_flags=SAMPLED)
        self._sender.send(RowSpan(context, saved, time.time_ns(), self._cost(saved), self))

    def _cost(self, saved: Saved) -> float | None:
        if self._price_per_hour is None:
            return None
        progress = self.job.progress
        tokens = sum(each.num_prompt_tokens - each.num_cached_tokens + each.num_output_tokens for each in saved.metrics)
        return self._price_per_hour / 3600 * progress.seconds * tokens / progress.tokens if tokens else 0.0

    def attributes(self, saved: Saved) -> dict[str, Any]:
        """Of a row, but for those that every span has."""
        asked = check_row(saved.row, self.job.dialect, self.job.params)
        prompts, params = ((), None) if isinstance(asked, Failure) else (prompts_of(asked[0]), asked[1])
        attributes = {
            **model_attributes(operation_of(prompts, params), self.model, params),
            **self._attributes,
            "session.id": self._filled(self._session, saved),
            "latitude.metadata": json.dumps(self._labels(saved)),
        }
        if self.content:
            attributes["gen_ai.input.messages"] = json.dumps([said for each in prompts for said in messages(each)])
            if isinstance(saved.outcome, Answer):
                attributes["gen_ai.output.messages"] = json.dumps([reply(each) for each in saved.outcome.samples])
        return attributes

    def _labels(self, saved: Saved) -> dict[str, str]:
        filled = {name: self._filled(template, saved) for name, template in self._metadata.items()}
        return {**self._always, "row": str(saved.row.index), **known(filled)}

    def _filled(self, template: Template | None, saved: Saved) -> str | None:
        if template is None or any(name not in saved.row.fields for name in template.fields):
            return None
        return plain(template.fill(saved.row.fields))


@dataclass(frozen=True, slots=True)
class RowSpan:
    """A row's span, which the sender's thread puts together. ended: in nanoseconds since 1970."""

    context: SpanContext
    saved: Saved
    ended: int
    cost: float | None
    of: RowTraces

    def built(self) -> ReadableSpan:
        metrics, outcome = self.saved.metrics, self.saved.outcome
        seconds = max((each.e2e_time or 0.0 for each in metrics), default=0.0)
        ttft = min((each.ttft for each in metrics if each.ttft is not None), default=None)
        attributes = self.of.attributes(self.saved) | first_token_attributes(ttft) | cost_attributes(self.cost)
        status = Status()
        if isinstance(outcome, Failure):
            status = Status(StatusCode.ERROR, plain(outcome.message) if self.of.content else outcome.code)
            attributes["error.type"] = outcome.code
        else:
            attributes |= {
                "gen_ai.response.finish_reasons": [sample.finish_reason for sample in outcome.samples] or None,
                "gen_ai.usage.input_tokens": outcome.prompt_tokens,
                "gen_ai.usage.output_tokens": outcome.output_tokens,
                "gen_ai.usage.cache_read.input_tokens": sum(each.num_cached_tokens for each in metrics),
            }
        return ReadableSpan(
            f"{attributes['gen_ai.operation.name']} {self.of.model}",
            self.context,
            resource=resource(),
            attributes=known(attributes),
            kind=SpanKind.INTERNAL,
            status=status,
            start_time=self.ended - int(seconds * 1e9),
            end_time=self.ended,
            instrumentation_scope=SCOPE,
        )


def plain(text: str) -> str:
    """Text with a UTF-8 form, as protobuf needs it: with a ? for an unpaired surrogate."""
    return text.encode(errors="replace").decode()


def operation_of(prompts: Sequence[Prompt], params: object) -> str:
    if isinstance(params, PoolingParams):
        return pooling_operation(params)
    return "chat" if not prompts or isinstance(prompts[0], Conversation) else "text_completion"


def prompts_of(asked: RowRequest) -> Sequence[Prompt]:
    """Those of pairs are their texts, each once."""
    return asked.prompts or list(dict.fromkeys(text for pair in asked.pairs for text in (pair.query, pair.document)))


def messages(prompt: Prompt) -> list[dict[str, Any]]:
    """By the semantic conventions. Of token ids there is no text here."""
    if isinstance(prompt, Conversation):
        return [message(str(each.get("role", "user")), each.get("content")) for each in prompt.messages]
    return [message("user", prompt)] if isinstance(prompt, str) else []


def message(role: str, content: object) -> dict[str, Any]:
    text = content if isinstance(content, str) else json.dumps(content)
    return {"role": role, "parts": [{"type": "text", "content": text}]}


def reply(sample: Sample) -> dict[str, Any]:
    return {**message("assistant", sample.text), "finish_reason": sample.finish_reason}
