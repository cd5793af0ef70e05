"""Every route without, with a wrong and with a right key."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from local_server import LocalServer, local_server
from starlette.routing import Mount, Route

from pybatch.api.async_llm import AsyncLLM
from pybatch.serve.guard.authentication import OPEN

KEY = "sk-right"


@pytest.fixture(scope="module")
def server(llm: AsyncLLM) -> Iterator[LocalServer]:
    with local_server(llm, api_key=[KEY, "sk-other"]) as server:
        yield server


def flat(routes: Iterable[Any]) -> Iterator[Any]:
    for route in routes:
        included = getattr(route, "original_router", None)  # newer FastAPI keeps routers as they were included
        yield from [route] if included is None else flat(included.routes)


def requests_of(server: LocalServer) -> Iterator[tuple[str, str]]:
    """A method and a path for everything that the application answers."""
    for route in flat(server.server.app.routes):
        assert isinstance(route, Route | Mount), f"{route}: what is it?"
        path = re.sub(r"\{[^}]*\}", "x", route.path)
        for method in sorted(getattr(route, "methods", None) or {"GET"}):
            yield method, path


def test_every_route_but_the_open_ones_needs_a_key(server: LocalServer) -> None:
    tried = set()
    with httpx.Client(base_url=server.url) as client:
        for method, path in [*requests_of(server), ("GET", "/nowhere"), ("POST", "/nowhere")]:
            is_open = path in OPEN or (method in ("GET", "HEAD") and (path == "/" or path.startswith("/page/")))
            for headers, right in (
                ({}, False),
                ({"authorization": "Bearer sk-wrong"}, False),
                ({"authorization": f"Bearer {KEY}"}, True),
            ):
                with client.stream(method, path, headers=headers) as response:  # some of them never end
                    refused = response.status_code == 401
                    if refused:
                        response.read()
                assert refused == (not is_open and not right), (method, path, headers, response.status_code)
                if refused and method != "HEAD":
                    expect_unauthorised(path, response)
            tried.add(path)
    assert {"/v1/chat/completions", "/v1/messages", "/v1/files", "/v1/models/x", "/openapi.json"} <= tried


def expect_unauthorised(path: str, response: httpx.Response) -> None:
    assert response.headers["www-authenticate"] == "Bearer"
    error = response.json()["error"]
    if path.startswith("/v1/messages"):
        assert error["type"] == "authentication_error"
    else:
        assert error["code"] == "invalid_api_key"


@pytest.mark.parametrize(
    ("headers", "right"),
    [
        ({"authorization": f"bearer {KEY}"}, True),
        ({"x-api-key": "sk-other"}, True),
        ({"authorization": "Bearer of another service", "x-api-key": KEY}, True),
        ({"authorization": f"Basic {KEY}"}, False),
        ({"authorization": KEY}, False),
        ({"authorization": "Bearer"}, False),
        ({"x-api-key": KEY[:-1]}, False),
        ({"x-api-key": ""}, False),
        ({"x-api-key": f"Bearer {KEY}"}, False),
    ],
)
def test_where_a_key_may_stand(server: LocalServer, headers: dict[str, str], right: bool) -> None:
    assert httpx.get(f"{server.url}/v1/models", headers=headers).status_code == (200 if right else 401)


def test_metrics_are_open_by_choice(llm: AsyncLLM, server: LocalServer) -> None:
    assert httpx.get(f"{server.url}/metrics").status_code == 401
    with local_server(llm, api_key=[KEY], metrics_without_key=True) as open_metrics:
        assert httpx.get(f"{open_metrics.url}/metrics").status_code != 401
        assert httpx.get(f"{open_metrics.url}/v1/models").status_code == 401


def test_no_key_shows_in_errors_or_settings(server: LocalServer, capfd: pytest.CaptureFixture[str]) -> None:
    wrong = "sk-secret-but-mistyped"
    response = httpx.get(f"{server.url}/v1/models", headers={"authorization": f"Bearer {wrong}"})
    assert wrong not in response.text
    assert KEY not in repr(server.service.settings)
    printed = capfd.readouterr()
    assert wrong not in printed.out + printed.err


def test_keys_of_a_file_open_the_server(llm: AsyncLLM, tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("# ours\nsk-a alice\n\nsk-b\n")
    with local_server(llm, api_key_file=file) as server:
        for key, status in (("sk-a", 200), ("sk-b", 200), ("sk-c", 401), ("alice", 401), ("#", 401)):
            headers = {"authorization": f"Bearer {key}"}
            assert httpx.get(f"{server.url}/v1/models", headers=headers).status_code == status
