"""The real exporter of OpenTelemetry against a collector that fails."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator

import pytest
from latitude_server import KEY, PROJECT, LatitudeServer, Trouble, latitude_server
from opentelemetry.sdk.trace import TracerProvider

from pybatch.latitude.access import Access, trace_sender
from pybatch.telemetry import sender as sending
from pybatch.telemetry.resource import resource
from pybatch.telemetry.sender import SpanSender


@pytest.fixture
def server() -> Iterator[LatitudeServer]:
    with latitude_server() as server:
        yield server


@pytest.fixture
def told() -> list[str]:
    return []


@pytest.fixture
def sender(server: LatitudeServer, told: list[str]) -> SpanSender:
    return trace_sender(Access.from_environment(PROJECT, server.environment), told.append)


def make_spans(sender: SpanSender, count: int) -> None:
    provider = TracerProvider(resource=resource(), shutdown_on_exit=False)
    provider.add_span_processor(sender)
    tracer = provider.get_tracer("test")
    for number in range(count):
        tracer.start_span(f"span {number}").end()


@pytest.mark.parametrize("status", [429, 500, 502, 503])
def test_what_passes_is_tried_again(sender: SpanSender, server: LatitudeServer, told: list[str], status: int) -> None:
    server.troubles.append(Trouble(status, times=2, headers={"retry-after": "0.05"}))
    make_spans(sender, 3)
    sender.shutdown()
    assert [span.name for span in server.spans] == ["span 0", "span 1", "span 2"]
    assert len(server.requests) == 3
    assert min(later - sooner for sooner, later in zip(server.times, server.times[1:], strict=False)) > 0.04
    assert not told


def test_tries_are_spread_where_the_collector_names_no_time(sender: SpanSender, server: LatitudeServer) -> None:
    server.troubles.append(Trouble(429, times=1))
    make_spans(sender, 1)
    sender.shutdown()
    assert len(server.spans) == 1
    assert 0.7 < server.times[1] - server.times[0] < 3  # a second, give or take a fifth


def test_a_batch_that_is_too_large_is_halved(sender: SpanSender, server: LatitudeServer, told: list[str]) -> None:
    server.troubles.append(Trouble(413, largest=4000))
    make_spans(sender, 100)
    sender.shutdown()
    assert sorted(int(span.name.split()[1]) for span in server.spans) == list(range(100))
    assert sender.sent == 100
    assert not told


@pytest.mark.parametrize(
    ("status", "reason"),
    [(302, "Found"), (400, "Bad Request"), (401, "Unauthorized"), (403, "Forbidden"), (404, "Not Found")],
)
def test_a_refusal_is_final_and_told_once(
    sender: SpanSender, server: LatitudeServer, told: list[str], status: int, reason: str
) -> None:
    server.troubles.append(Trouble(status, headers={"location": "/elsewhere"}))
    make_spans(sender, 1200)  # three batches
    began = time.monotonic()
    sender.shutdown()
    assert time.monotonic() - began < sending.CLOSING
    assert told == [f"traces are lost, and nothing else: {server.url}/v1/traces: it answers {status} {reason}"]
    assert KEY not in told[0]


def test_a_collector_that_is_not_there_costs_no_time(told: list[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and not listening
        sender = SpanSender(f"http://127.0.0.1:{taken.getsockname()[1]}/v1/traces", None, told.append)
        make_spans(sender, 1200)
        began = time.monotonic()
        sender.shutdown()
        assert time.monotonic() - began < sending.CLOSING
    assert len(told) == 1
    assert told[0].endswith("it cannot be reached")


def test_a_slow_collector_has_a_limit_at_the_end(
    sender: SpanSender, server: LatitudeServer, told: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sending, "CLOSING", 0.3)
    server.troubles.append(Trouble(0, seconds=20))
    make_spans(sender, 10)
    began = time.monotonic()
    sender.shutdown()
    assert time.monotonic() - began < 10
    assert told == [f"traces are lost, and nothing else: {server.url}/v1/traces: it is too slow"]


def test_memory_is_bounded_and_the_newest_spans_are_kept(
    server: LatitudeServer, told: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sending, "MOST_WAITING", 1024)
    monkeypatch.setattr(sending, "CLOSING", 60)
    gate = threading.Event()
    server.troubles.append(Trouble(0, gate=gate, times=1))
    sender = trace_sender(Access.from_environment(PROJECT, server.environment), told.append)
    make_spans(sender, sending.MOST_WAITING + 3000)
    gate.set()
    sender.shutdown()
    numbers = {int(span.name.split()[1]) for span in server.spans}
    assert sending.MOST_WAITING <= len(numbers) < sending.MOST_WAITING + 3000
    assert max(numbers) == sending.MOST_WAITING + 2999
    assert len(told) == 1
