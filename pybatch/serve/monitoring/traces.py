"""OpenTelemetry traces: a span for each request that asks the model, with the attributes of generative AI."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.trace import SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

import pybatch
from pybatch.engine.pooling_params import PoolingParams
from pybatch.latitude.access import Access, trace_sender
from pybatch.serve.settings import ServerSettings
from pybatch.serve.watched import Watched
from pybatch.telemetry.attributes import first_token_attributes, known, model_attributes, pooling_operation
from pybatch.telemetry.resource import resource
from pybatch.telemetry.sender import SpanSender

log = logging.getLogger(__name__)


def senders(settings: ServerSettings) -> list[SpanSender]:
    """To wherever the settings say that traces go. Raises ValueError, naming the variable, if what the environment says
    of Latitude is wrong."""
    made = []
    if settings.otlp_traces_endpoint is not None:
        made.append(SpanSender(settings.otlp_traces_endpoint, None, log.warning))
    if settings.latitude is not None:
        made.append(trace_sender(Access.from_environment(settings.latitude), log.warning))
    return made


class Traces:
    """Sends spans by OTLP over HTTP, on threads of its own. OTEL_EXPORTER_OTLP_HEADERS and the like hold.

    No text of prompts or answers is in them.
    """

    def __init__(self, to: Sequence[SpanProcessor]) -> None:
        self.provider = TracerProvider(resource=resource(), shutdown_on_exit=False)
        for each in to:
            self.provider.add_span_processor(each)
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
    if isinstance(request.params, PoolingParams):
        return pooling_operation(request.params)
    return "text_completion" if request.route == "/v1/completions" else "chat"


def attributes(request: Watched, operation: str) -> dict[str, Any]:
    return known(
        {
            **model_attributes(operation, request.model, request.params),
            **first_token_attributes(request.ttft),
            "gen_ai.latency.e2e": request.seconds,  # by vLLM's name
            "gen_ai.request.id": request.id,
            "gen_ai.response.finish_reasons": request.reasons or None,
            "gen_ai.usage.input_tokens": request.prompt_tokens,
            "gen_ai.usage.output_tokens": request.output_tokens,
            "gen_ai.usage.cache_read.input_tokens": request.cached_tokens,
            "http.request.method": request.method,
            "http.route": request.route,
            "http.response.status_code": request.status,
        }
    )
