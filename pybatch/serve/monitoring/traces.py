"""OpenTelemetry traces: a span for each request that asks the model, with the attributes of generative AI."""

from __future__ import annotations

from typing import Any

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

import pybatch
from pybatch.serve.watched import Watched

# Of SamplingParams, by the semantic conventions' names. Stop sequences are the client's text, so they are left out.
PARAMS = {
    "max_tokens": "max_tokens",
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "frequency_penalty": "frequency_penalty",
    "presence_penalty": "presence_penalty",
    "seed": "seed",
    "n": "choice.count",
}


class Traces:
    """Sends spans to an OTLP endpoint over HTTP, on a thread of its own. OTEL_EXPORTER_OTLP_HEADERS and the like hold.

    No text of prompts or answers is in them.
    """

    def __init__(self, endpoint: str) -> None:
        resource = Resource.create({"service.name": "pybatch", "service.version": pybatch.__version__})
        self.provider = TracerProvider(resource=resource)
        self.provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint)))
        self.tracer = self.provider.get_tracer("pybatch", pybatch.__version__)

    def record(self, request: Watched) -> None:
        """A request that has ended; its parent is what its traceparent header says."""
        if not request.prompts:
            return
        operation = operation_of(request)
        begin = int(request.arrived * 1e9)
        span = self.tracer.start_span(
            f"{operation} {request.model}",
            context=TraceContextTextMapPropagator().extract(request.trace_headers),
            kind=SpanKind.SERVER,
            start_time=begin,
            attributes=attributes(request, operation),
        )
        if request.gone or (request.status or 500) >= 500 or "error" in request.reasons:
            span.set_status(Status(StatusCode.ERROR))
            span.set_attribute("error.type", "cancelled" if request.gone else str(request.status))
        span.end(begin + int(request.seconds * 1e9))

    def close(self) -> None:
        """Sends what is left."""
        self.provider.shutdown()


def operation_of(request: Watched) -> str:
    return "text_completion" if request.route == "/v1/completions" else "chat"


def attributes(request: Watched, operation: str) -> dict[str, Any]:
    known = {
        "gen_ai.operation.name": operation,
        "gen_ai.provider.name": "pybatch",
        "gen_ai.request.model": request.model,
        "gen_ai.response.model": request.model,
        "gen_ai.request.id": request.id,
        "gen_ai.response.finish_reasons": request.reasons or None,
        "gen_ai.usage.input_tokens": request.prompt_tokens,
        "gen_ai.usage.output_tokens": request.output_tokens,
        "gen_ai.usage.cache_read.input_tokens": request.cached_tokens,
        "gen_ai.latency.time_to_first_token": request.ttft,  # seconds; this and the next by vLLM's name
        "gen_ai.latency.e2e": request.seconds,
        "http.request.method": request.method,
        "http.route": request.route,
        "http.response.status_code": request.status,
        **{f"gen_ai.request.{name}": getattr(request.params, field, None) for field, name in PARAMS.items()},
    }
    return {name: value for name, value in known.items() if value is not None}
