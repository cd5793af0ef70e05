"""pybatch serve --latitude."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest
from latitude_server import KEY, PROJECT, Trouble, latitude_server
from local_server import local_server

from pybatch.api.async_llm import AsyncLLM

SECRET = "a secret"


@pytest.fixture(scope="module")
def llm(tiny_model: Path) -> AsyncLLM:
    return AsyncLLM(tiny_model, num_kv_blocks=64, threads=1)


def ask(url: str) -> httpx.Response:
    body = {"model": "tiny", "messages": [{"role": "user", "content": SECRET}], "max_tokens": 4}
    return httpx.post(f"{url}/v1/chat/completions", json=body, headers={"x-request-id": "r-1"}, timeout=60)


def test_requests_are_traces_of_a_project(llm: AsyncLLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with latitude_server() as latitude:
        for name, value in latitude.environment.items():
            monkeypatch.setenv(name, value)
        with local_server(llm, latitude=PROJECT, data_dir=tmp_path) as server:
            assert ask(server.url).status_code == 200
        (span,) = latitude.spans
        found = {each.key: each.value for each in span.attributes}
        assert span.name == "chat tiny"
        assert found["gen_ai.request.id"].string_value == "r-1"
        assert found["gen_ai.usage.output_tokens"].int_value == 4
        assert found["gen_ai.server.time_to_first_token"].int_value > 0
        assert SECRET.encode() not in b"".join(latitude.bodies)


def test_a_collector_that_refuses_is_told_of_once(
    llm: AsyncLLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with latitude_server() as latitude:
        for name, value in latitude.environment.items():
            monkeypatch.setenv(name, value)
        latitude.troubles.append(Trouble(403))
        with local_server(llm, latitude=PROJECT, data_dir=tmp_path) as server:
            assert [ask(server.url).status_code for _ in range(3)] == [200] * 3
    said = [record.getMessage() for record in caplog.records if record.name.startswith("pybatch")]
    assert [line for line in said if "traces are lost" in line] == [
        f"traces are lost, and nothing else: {latitude.url}/v1/traces: it answers 403 Forbidden"
    ]
    assert KEY not in caplog.text
