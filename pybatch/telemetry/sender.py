"""Spans to a collector, by OTLP over HTTP, at no cost to whoever made them."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import requests
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.trace import SpanContext

TIMEOUT = 10.0  # seconds that a batch of spans has, with all its tries
CLOSING = 5.0  # seconds that the spans which wait have at the end
MOST_WAITING = 8192  # spans; the oldest are dropped
PER_REQUEST = 512
PASSING = (429, 502, 503, 504)  # statuses after which the exporter tries again
TOO_LARGE = 413

# What the exporter says of every batch is said once, in our words; a program that has handlers gets it all the same.
logging.getLogger("opentelemetry").addHandler(logging.NullHandler())


class LazySpan(Protocol):
    """A span that is put together where it is sent."""

    @property
    def context(self) -> SpanContext: ...

    def built(self) -> ReadableSpan: ...


class SpanSender(SpanProcessor):
    """Sends spans from a thread of its own. A collector that is slow, refuses them or is not there costs their spans.

    endpoint: of the collector's traces. headers: of all requests. tell: called once, with the reason, when spans are
    first lost, from any thread.
    """

    def __init__(self, endpoint: str, headers: Mapping[str, str] | None, tell: Callable[[str], object]) -> None:
        self._endpoint, self._tell = endpoint, tell
        self._session = CollectorSession()
        self._exporter = Exporter(
            OTLPSpanExporter(endpoint=endpoint, headers=headers, timeout=TIMEOUT, session=self._session),
            self._session,
            self._lost,
        )
        self._batches = BatchSpanProcessor(
            self._exporter, max_queue_size=MOST_WAITING, max_export_batch_size=PER_REQUEST
        )
        self._taken = 0
        self._told = threading.Lock()  # taken for good by the first who tells

    @property
    def sent(self) -> int:
        """Spans that the collector has taken."""
        return self._exporter.sent

    def send(self, span: LazySpan | ReadableSpan) -> None:
        self._taken += 1
        self._batches.on_end(span)  # type: ignore[arg-type]  # which reads its context alone

    def on_end(self, span: ReadableSpan) -> None:
        self.send(span)

    def shutdown(self) -> None:
        """Sends what waits. A collector that cannot be reached, or has lost spans before, has no time for it, any other
        CLOSING seconds."""
        self._session.closing = True
        deadline = time.monotonic() + CLOSING
        # It waits for half a minute, and what it waits for cannot be interrupted: a daemon's end does.
        closer = threading.Thread(target=self._batches.shutdown, name="last spans", daemon=True)
        closer.start()
        while closer.is_alive() and not self._told.locked() and time.monotonic() < deadline:
            closer.join(0.02)
        if self.sent < self._taken:
            self._lost(self._session.fault or "it is too slow")

    def force_flush(self, timeout_millis: int = 30000) -> bool:
        return self._batches.force_flush(timeout_millis)

    def _lost(self, reason: str) -> None:
        if self._told.acquire(blocking=False):
            self._tell(f"traces are lost, and nothing else: {self._endpoint}: {reason}")


class Exporter(SpanExporter):
    """Builds spans, and halves batches that are too large. lost: called with the reason for each batch that is lost."""

    def __init__(self, to: OTLPSpanExporter, session: CollectorSession, lost: Callable[[str], object]) -> None:
        self._to, self._session, self._lost = to, session, lost
        self.sent = 0

    def export(self, spans: Sequence[ReadableSpan | LazySpan]) -> SpanExportResult:
        return self._export([each if isinstance(each, ReadableSpan) else each.built() for each in spans])

    def _export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        result = self._to.export(spans)
        if result is SpanExportResult.SUCCESS:
            self.sent += len(spans)
        elif self._session.status == TOO_LARGE and len(spans) > 1:
            half = len(spans) // 2
            halves = (self._export(spans[:half]), self._export(spans[half:]))
            result = max(halves, key=lambda each: each.value)  # a failure, if there is one
        else:
            self._lost(self._session.fault or "the spans cannot be written")
        return result

    def shutdown(self) -> None:
        self._to.shutdown()  # type: ignore[no-untyped-call]


class CollectorSession(requests.Session):
    """Knows what was wrong with the last request. status: of its response. closing: a collector that cannot be
    reached is not tried again."""

    def __init__(self) -> None:
        super().__init__()
        self.fault: str | None = None
        self.status: int | None = None
        self.closing = False

    def request(self, *args: Any, **kwargs: Any) -> requests.Response:
        self.status = None
        try:
            # Not followed: the key is for this address, and a redirected POST comes there as a GET.
            response = super().request(*args, **{**kwargs, "allow_redirects": False})
        except requests.RequestException as error:
            self.fault = why(error)
            if self.closing:
                raise requests.RequestException(self.fault) from None  # a kind that the exporter does not try again
            raise
        self.status, self.fault = response.status_code, None
        if not 200 <= response.status_code < 300:
            self.fault = f"it answers {response.status_code} {response.reason}"
            if response.status_code < 400:
                response.status_code = 400  # the exporter takes spans that are sent elsewhere for taken
            if response.status_code >= 500 and response.status_code not in PASSING:
                response.status_code = 503  # the exporter takes any other of these for final
        return response


def why(error: requests.RequestException) -> str:
    """In a few words: the error's own text is a chain of the library's objects."""
    if isinstance(error, requests.Timeout):
        return "it does not answer in time"
    return "it cannot be reached" if isinstance(error, requests.ConnectionError) else type(error).__name__
