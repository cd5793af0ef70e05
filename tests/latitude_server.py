"""A loopback server that speaks Latitude's API and takes its traces, and checks all that it gets."""

from __future__ import annotations

import base64
import json
import re
import threading
import time
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

KEY = "lat-swordfish-0123456789"
PROJECT = "reviews"
PAGE = 200  # rows, at most
CELLS = ("input", "output", "expectedOutput", "metadata")
FILTER_OPS = {"eq", "neq", "gt", "gte", "lt", "lte", "in", "notIn", "contains", "notContains", "gtePercentile"}


def open_gate() -> threading.Event:
    gate = threading.Event()
    gate.set()
    return gate


@dataclass
class Trouble:
    """What the next requests get in place of an answer. path: a pattern of theirs. times: how many of them."""

    status: int
    path: str = ""
    times: int = 1_000_000
    headers: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0  # before it answers
    gate: threading.Event = field(default_factory=open_gate)  # what it waits for, too
    largest: int = -1  # bytes of a body that is let through


class LatitudeServer(ThreadingHTTPServer):
    """faults: what was wrong with requests by the rules of the API. requests: method and path of each."""

    daemon_threads = True

    def __init__(self) -> None:
        self.faults: list[str] = []
        self.requests: list[tuple[str, str]] = []
        self.bodies: list[bytes] = []
        self.exports: list[ExportTraceServiceRequest] = []
        self.datasets: dict[str, dict[str, dict[str, Any]]] = {}
        self.versions: Counter[str] = Counter()
        self.scores: list[dict[str, Any]] = []
        self.experiments: dict[str, dict[str, Any]] = {}
        self.troubles: deque[Trouble] = deque()
        self.times: list[float] = []
        self.lock = threading.Lock()
        super().__init__(("127.0.0.1", 0), Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    @property
    def environment(self) -> dict[str, str]:
        return {"LATITUDE_API_KEY": KEY, "LATITUDE_API_URL": self.url, "LATITUDE_TELEMETRY_URL": self.url}

    @property
    def spans(self) -> list[Any]:
        return [span for export in self.exports.copy() for of in export.resource_spans for scope in of.scope_spans
                for span in scope.spans]  # fmt: skip

    def add_dataset(self, slug: str, rows: list[dict[str, Any]]) -> None:
        self.datasets[slug] = {}
        self.insert(slug, rows)

    def insert(self, slug: str, rows: list[dict[str, Any]]) -> list[str]:
        """A row with an id that is there takes its place, as at Latitude."""
        self.versions[slug] += 1
        ids = []
        for row in rows:
            id = row.get("id") or f"made-{len(self.datasets[slug])}"
            before = self.datasets[slug].get(id, {"createdAt": f"2026-01-01T00:00:00.{len(self.datasets[slug]):06d}Z"})
            self.datasets[slug][id] = {
                **{name: row.get(name) for name in CELLS},
                "custom": row.get("custom") or {},
                "rowId": id,
                "datasetId": f"id-of-{slug}",
                "createdAt": before["createdAt"],
                "version": self.versions[slug],
            }
            ids.append(id)
        return ids


@contextmanager
def latitude_server() -> Iterator[LatitudeServer]:
    """Fails at its end if a request was against the rules."""
    server = LatitudeServer()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    assert not server.faults


class RefusalError(Exception):
    def __init__(self, status: int, message: str) -> None:
        self.status, self.message = status, message


class Handler(BaseHTTPRequestHandler):
    server: LatitudeServer
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        self.answer(self.rfile.read(int(self.headers["content-length"])))

    def do_GET(self) -> None:
        self.answer(b"")

    def answer(self, body: bytes) -> None:
        with self.server.lock:
            self.server.requests.append((self.command, self.path))
            self.server.times.append(time.monotonic())
            self.server.bodies.append(body)
            trouble = self.trouble(len(body))
        if trouble is not None:
            time.sleep(trouble.seconds)
            trouble.gate.wait(60)
            if trouble.status:
                self.reply(trouble.status, {"error": f"trouble with {KEY}"}, trouble.headers)
                return
        try:
            status, reply = self.traces(body) if self.path == "/v1/traces" else self.api(body)
        except RefusalError as refusal:
            status, reply = refusal.status, {"error": refusal.message}
        except Exception as error:  # which the test is told of
            self.server.faults.append(repr(error))
            status, reply = 400, {"error": "against the rules"}
        self.reply(status, reply)

    def trouble(self, size: int) -> Trouble | None:
        for each in self.server.troubles:
            if each.times and re.search(each.path, self.path) and size > each.largest:
                each.times -= 1
                return each
        return None

    def reply(self, status: int, reply: Any, headers: dict[str, str] | None = None) -> None:
        text = json.dumps(reply).encode()
        self.send_response(status)
        for name, value in {"content-type": "application/json", **(headers or {})}.items():
            self.send_header(name, value)
        self.send_header("content-length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, format: str, *args: object) -> None:
        pass

    def expect_key(self) -> None:
        scheme, _, key = self.headers.get("authorization", "").partition(" ")
        if (scheme, key) != ("Bearer", KEY):
            raise RefusalError(401, f"the key {key} is not known")

    def traces(self, body: bytes) -> tuple[int, Any]:
        self.expect_key()
        if self.headers.get("x-latitude-project") != PROJECT:
            raise RefusalError(404, "no such project")
        assert self.headers["content-type"] == "application/x-protobuf"
        export = ExportTraceServiceRequest.FromString(body)
        assert export.SerializeToString() == body  # nothing in it that the schema does not know
        for of in export.resource_spans:
            named = {each.key: each.value.string_value for each in of.resource.attributes}
            assert named["service.name"] == "pybatch"
            for span in (span for scope in of.scope_spans for span in scope.spans):
                assert len(span.trace_id) == 16
                assert any(span.trace_id)
                assert len(span.span_id) == 8
                assert any(span.span_id)
                assert 0 < span.start_time_unix_nano <= span.end_time_unix_nano
        with self.server.lock:
            self.server.exports.append(export)
        return 202, {}

    def api(self, body: bytes) -> tuple[int, Any]:
        self.expect_key()
        url = urlsplit(self.path)
        match url.path.split("/")[1:]:
            case ["v1", "projects", project, *_] if project == "forbidden":
                raise RefusalError(403, "the key is of another project")
            case ["v1", "projects", project, *_] if project != PROJECT:
                raise RefusalError(404, f"no project {project}")
            case ["v1", "projects", _, *rest]:
                if self.command == "POST":
                    assert self.headers["content-type"] == "application/json"
                return self.of_project(rest, parse_qs(url.query), json.loads(body) if body else None)
        raise RefusalError(404, "no such route")

    def of_project(self, path: list[str], query: dict[str, list[str]], body: Any) -> tuple[int, Any]:
        server = self.server
        with server.lock:
            match self.command, path:
                case "GET", ["datasets"]:
                    return 200, {"items": [dataset(slug, slug) for slug in server.datasets][:1], "hasMore": False}
                case "POST", ["datasets"]:
                    slug = re.sub(r"[^a-z0-9]+", "-", body["name"].lower()).strip("-")
                    server.datasets[slug] = {}
                    return 201, dataset(slug, body["name"])
                case _, ["datasets", slug, *_] if slug not in server.datasets:
                    raise RefusalError(404, f"no dataset {slug}")
                case "GET", ["datasets", slug]:
                    return 200, dataset(slug, slug)
                case "GET", ["datasets", slug, "rows"]:
                    return 200, page(list(server.datasets[slug].values()), query)
                case "POST", ["datasets", slug, "rows"]:
                    check_rows(body)
                    ids = server.insert(slug, body["rows"])
                    return 201, {"versionId": "v", "version": server.versions[slug], "rowIds": ids}
                case "POST", ["scores"]:
                    check_score(body)
                    server.scores.append(body)
                    return 201, score(body, len(server.scores))
                case "POST", ["experiments"]:
                    check_experiment(body)
                    slug = re.sub(r"[^a-z0-9]+", "-", body["name"].lower())
                    server.experiments[slug] = body
                    return 201, experiment(slug, body)
        raise RefusalError(404, "no such route")


def page(rows: list[dict[str, Any]], query: dict[str, list[str]]) -> Any:
    rows.sort(key=lambda row: row["createdAt"], reverse=query.get("sortDirection", ["desc"]) == ["desc"])
    begin = int(base64.b64decode(query["cursor"][0])) if "cursor" in query else 0
    limit = int(query.get("limit", ["50"])[0])
    assert 1 <= limit <= PAGE
    more = begin + limit < len(rows)
    cursor = base64.b64encode(str(begin + limit).encode()).decode() if more else None
    return {"items": rows[begin : begin + limit], "nextCursor": cursor, "hasMore": more}


def check_rows(body: Any) -> None:
    assert set(body) == {"rows"}
    assert body["rows"]
    for row in body["rows"]:
        assert set(row) <= {"id", *CELLS, "custom"}
        assert row["input"] is not None
        assert re.fullmatch(r"[\w.~-]{1,128}", row["id"], re.ASCII)


def check_score(body: Any) -> None:
    known = {"trace", "sourceId", "value", "passed", "feedback", "error", "duration", "tokens", "cost", "metadata"}
    assert set(body) <= known | {"simulationId"}
    assert body["trace"]["by"] == "id"
    assert re.fullmatch("[0-9a-f]{32}", body["trace"]["id"])
    assert 0 <= body["value"] <= 1
    assert isinstance(body["passed"], bool)
    assert isinstance(body["feedback"], str)
    assert body["sourceId"]


def check_experiment(body: Any) -> None:
    assert set(body) <= {"name", "description", "variants"}
    assert [each["baseline"] for each in body["variants"]].count(True) == 1
    assert len({each["name"] for each in body["variants"]}) == len(body["variants"])
    for variant in body["variants"]:
        assert set(variant) <= {"name", "baseline", "filterSet"}
        for name, conditions in variant["filterSet"].items():
            assert name.startswith("metadata.")
            assert all(set(each) == {"op", "value"} and each["op"] in FILTER_OPS for each in conditions)


def dataset(slug: str, name: str) -> Any:
    ids = {"id": f"id-of-{slug}", "organizationId": "org", "projectId": "p"}
    return {**ids, "slug": slug, "name": name, "version": 1, "createdAt": "2026-01-01", "updatedAt": "2026-01-01"}


def score(body: Any, number: int) -> Any:
    times = {"createdAt": "2026-01-01T00:00:00Z", "updatedAt": "2026-01-01T00:00:00Z"}
    ids = {"id": f"score-{number}", "organizationId": "org", "projectId": "p", "traceId": body["trace"]["id"]}
    rest = {"errored": False, "duration": 0, "tokens": 0, "cost": 0, "metadata": {}}
    return {"source": "custom", **rest, **ids, **times, **{k: v for k, v in body.items() if k != "trace"}}


def experiment(slug: str, body: Any) -> Any:
    ids = {"id": f"id-of-{slug}", "organizationId": "org", "projectId": "p", "slug": slug, "name": body["name"]}
    variants = [{"id": f"v{number}", **each} for number, each in enumerate(body["variants"])]
    rest = {"description": body.get("description") or "", "createdAt": "2026-01-01", "updatedAt": "2026-01-01"}
    return {**ids, **rest, "variants": variants}
