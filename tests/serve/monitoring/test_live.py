"""The log, traces and profiles of a live server."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from live_server import Server, serving
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

SECRET = "swordfish"
KEY = "sk-the-key-of-alice"
TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


class Collector(ThreadingHTTPServer):
    """Takes what an OpenTelemetry exporter sends."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []
        super().__init__(("127.0.0.1", 0), Receiver)

    @property
    def spans(self) -> list[Any]:
        requests = [ExportTraceServiceRequest.FromString(body) for body in self.bodies.copy()]
        return [s for r in requests for resource in r.resource_spans for of in resource.scope_spans for s in of.spans]


class Receiver(BaseHTTPRequestHandler):
    server: Collector

    def do_POST(self) -> None:
        assert self.path == "/v1/traces"
        self.server.bodies.append(self.rfile.read(int(self.headers["content-length"])))
        self.send_response(200)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    collector = Collector()
    thread = threading.Thread(target=collector.serve_forever)
    thread.start()
    yield collector
    collector.shutdown()
    thread.join()
    collector.server_close()


@pytest.fixture(scope="module")
def watched(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory, collector: Collector) -> Iterator[Server]:
    """It is stopped at the end, so that its last spans are sent."""
    folder = tmp_path_factory.mktemp("watched")
    keys = folder / "keys"
    keys.write_text(f"{KEY} alice\n")
    flags = {
        "--served-model-name": "tiny",
        "--api-key-file": str(keys),
        "--otlp-traces-endpoint": f"http://127.0.0.1:{collector.server_port}/v1/traces",
        "--profile": str(folder / "profiles"),
    }
    with serving(tiny_model, *[part for pair in flags.items() for part in pair]) as server:
        yield server


def post(server: Server, path: str, body: Any, **headers: str) -> httpx.Response:
    return httpx.post(server.url + path, json=body, headers={"authorization": f"Bearer {KEY}", **headers}, timeout=60)


def chat(server: Server, request_id: str, **fields: Any) -> httpx.Response:
    body = {"model": "tiny", "messages": [{"role": "user", "content": SECRET}], "max_tokens": 5, **fields}
    parent = f"00-{TRACE}-{PARENT}-01"
    return post(server, "/v1/chat/completions", body, **{"x-request-id": request_id, "traceparent": parent})


def logged(server: Server, text: str) -> list[str]:
    deadline = time.monotonic() + 10
    while not (found := [line for line in server.lines if text in line]) and time.monotonic() < deadline:
        time.sleep(0.02)
    return found


def test_a_request_is_a_line_of_the_log(watched: Server) -> None:
    usage = chat(watched, "logged-1").json()["usage"]
    (line,) = logged(watched, "logged-1")
    assert re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} INFO pybatch.access: id=logged-1 method=POST ", line)
    pairs = dict(pair.split("=", 1) for pair in line.split("access: ")[1].split())
    assert (pairs["route"], pairs["status"], pairs["key"]) == ("/v1/chat/completions", "200", "alice")
    assert (pairs["prompt_tokens"], pairs["output_tokens"]) == (str(usage["prompt_tokens"]), "5")
    assert pairs["finish"] == "length"
    assert 0 < float(pairs["ttft"]) <= float(pairs["seconds"])
    httpx.get(f"{watched.url}/health", headers={"x-request-id": "polled-1"})
    httpx.get(f"{watched.url}/x%0Ay%20z", headers={"x-request-id": "refused-1"})
    (line,) = logged(watched, "refused-1")
    assert 'route="/x\\ny z" status=401' in line
    log = "".join(watched.lines)
    assert "polled-1" not in log
    assert SECRET not in log
    assert KEY not in log


def test_traces_and_profiles(watched: Server, collector: Collector) -> None:
    assert chat(watched, "traced-1", temperature=0.5, top_p=0.9, seed=3, n=2).status_code == 200
    profiles(watched)
    assert watched.stop() == 0
    (span,) = [span for span in collector.spans if attribute(span, "gen_ai.request.id") == "traced-1"]
    assert (span.name, span.trace_id.hex(), span.parent_span_id.hex()) == ("chat tiny", TRACE, PARENT)
    expected = {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "pybatch",
        "gen_ai.request.model": "tiny",
        "gen_ai.response.model": "tiny",
        "gen_ai.usage.output_tokens": 10,
        "gen_ai.request.max_tokens": 5,
        "gen_ai.request.temperature": 0.5,
        "gen_ai.request.top_p": 0.9,
        "gen_ai.request.seed": 3,
        "gen_ai.request.choice.count": 2,
        "gen_ai.response.finish_reasons": ["length", "length"],
        "http.response.status_code": 200,
    }
    assert {name: attribute(span, name) for name in expected} == expected
    seconds = (span.end_time_unix_nano - span.start_time_unix_nano) / 1e9
    assert 0 < attribute(span, "gen_ai.latency.time_to_first_token") < seconds < 60
    assert attribute(span, "gen_ai.usage.input_tokens") > 10
    assert not [body for body in collector.bodies if SECRET.encode() in body or KEY.encode() in body]


def attribute(span: Any, name: str) -> Any:
    for each in span.attributes:
        if each.key == name:
            kind = each.value.WhichOneof("value")
            value = getattr(each.value, kind)
            return [item.string_value for item in value.values] if kind == "array_value" else value
    return None


def profiles(server: Server) -> None:
    """One of three steps, and one that is ended."""
    started = post(server, "/start_profile", {"num_steps": 3}).json()
    assert post(server, "/start_profile", {}).status_code == 400
    chat(server, "profiled")
    file = Path(started["file"])
    deadline = time.monotonic() + 30
    while not file.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert counts(file) == dict.fromkeys(("step", "schedule", "run", "sample", "update"), 3)
    file = Path(post(server, "/start_profile", None).json()["file"])
    chat(server, "profiled")
    assert post(server, "/stop_profile", None).json() == {"file": str(file)}
    assert counts(file) == dict.fromkeys(("step", "schedule", "run", "sample", "update"), 5)
    assert post(server, "/start_profile", {"num_steps": 0}).status_code == 400


def counts(file: Path) -> dict[str, int]:
    """The steps that ran something, and their parts, in a Chrome trace."""
    events = [each for each in json.loads(file.read_text())["traceEvents"] if each.get("cat") == "user_annotation"]
    names = [event["name"] for event in events]
    return {name: names.count(name) for name in ("step", "schedule", "run", "sample", "update")}


def test_without_the_flag_there_is_no_profile(server: Server) -> None:
    assert httpx.post(f"{server.url}/start_profile").status_code == 404
