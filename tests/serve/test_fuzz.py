"""Bodies that nobody should send, a thousand of bench/serve_fuzz.py's, and those that are sent by mistake."""

from __future__ import annotations

import asyncio
import json
import runpy
from pathlib import Path
from typing import Any

import httpx
import pytest
from live_server import Server

BENCH = Path(__file__).resolve().parents[2] / "bench"


@pytest.fixture(scope="module")
def program() -> dict[str, Any]:
    return runpy.run_path(str(BENCH / "serve_fuzz.py"), run_name="serve_fuzz")


def test_no_body_makes_the_server_fail_or_leaves_anything_in_the_engine(
    tmp_path: Path, program: dict[str, Any]
) -> None:
    async def run() -> Any:
        async with program["application"](tmp_path) as (app, llm):
            return await program["fuzz"](app, llm, requests=1000, seed=1)

    counts, wrong = asyncio.run(run())
    assert wrong == []
    assert sum(counts.values()) == 1000
    answered = {route for route, status in counts if status == 200}
    assert answered >= {"/v1/chat/completions", "/v1/completions", "/v1/messages", "/tokenize", "/detokenize"}


def test_a_body_of_every_route_is_tried(server: Server, program: dict[str, Any]) -> None:
    paths = httpx.get(f"{server.url}/openapi.json").json()["paths"]
    posts = {path for path, methods in paths.items() if "post" in methods and "{" not in path}
    assert posts - {"/v1/files"} == program["BODIES"].keys()  # that one takes a form


def test_the_name_of_an_unknown_field_may_be_anything(server: Server) -> None:
    body = json.dumps({"model": "tiny", "\ud800": 1})
    response = httpx.post(f"{server.url}/v1/chat/completions", content=body)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "\ud800"


def test_the_name_of_an_unknown_field_is_told_in_short(server: Server) -> None:
    name = "x" * 1_000_000
    for body in ({"model": "tiny", name: 1}, {"model": "tiny", "messages": [{"role": name, "content": "Hello"}]}):
        response = httpx.post(f"{server.url}/v1/chat/completions", json=body)
        assert response.status_code == 400
        assert len(response.content) < 1000


def test_a_file_of_an_impossible_name_is_not_there(server: Server) -> None:
    asked = {"input_file_id": "\ud800", "endpoint": "/v1/chat/completions", "completion_window": "24h"}
    assert httpx.post(f"{server.url}/v1/batches", content=json.dumps(asked)).status_code in (400, 404)
