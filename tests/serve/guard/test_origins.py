"""What other sites' pages in a user's browser can do to a server on 127.0.0.1."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest
from local_server import LocalServer, local_server

from pybatch.api.async_llm import AsyncLLM
from pybatch.serve.guard.origins import is_local

ASK = b'{"model": "tiny", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 1}'
PAGE = "https://page.example"


@pytest.fixture(scope="module")
def server(llm: AsyncLLM) -> Iterator[LocalServer]:
    with local_server(llm) as server:
        yield server


def ask(server: LocalServer, **headers: str) -> httpx.Response:
    return httpx.post(f"{server.url}/v1/chat/completions", content=ASK, headers=headers)


def test_a_foreign_page_s_post_without_preflight_is_refused(server: LocalServer) -> None:
    response = ask(server, **{"content-type": "text/plain", "origin": PAGE})
    assert response.status_code == 403
    assert response.json()["error"]["code"] == "forbidden_origin"
    assert ask(server, origin="null").status_code == 403
    assert ask(server, origin="http://[").status_code == 403
    server.expect_idle()


def test_a_name_made_to_resolve_to_this_machine_is_refused(server: LocalServer) -> None:
    port = server.url.rpartition(":")[2]
    rebound = f"attacker.example:{port}"
    response = ask(server, host=rebound, origin=f"http://{rebound}")
    assert response.status_code == 403
    assert response.json()["error"]["code"] == "forbidden_host"
    assert httpx.get(f"{server.url}/v1/models", headers={"host": rebound}).status_code == 403


def test_programs_and_the_server_s_own_page_are_answered(server: LocalServer) -> None:
    port = server.url.rpartition(":")[2]
    assert ask(server, **{"content-type": "application/x-www-form-urlencoded"}).status_code == 200  # curl -d
    for host in (f"127.0.0.1:{port}", f"localhost:{port}"):
        assert ask(server, host=host, origin=f"http://{host}").status_code == 200


def test_no_origin_is_allowed_by_default_and_those_of_the_flag_are(llm: AsyncLLM, server: LocalServer) -> None:
    preflight = {"origin": PAGE, "access-control-request-method": "POST", "access-control-request-headers": "x-api-key"}
    path = "/v1/chat/completions"
    assert "access-control-allow-origin" not in httpx.options(server.url + path, headers=preflight).headers
    with local_server(llm, allowed_origins=[PAGE]) as open_to_page:
        response = httpx.options(open_to_page.url + path, headers=preflight)
        assert response.status_code == 200
        assert response.headers["access-control-allow-origin"] == PAGE
        assert ask(open_to_page, origin=PAGE).headers["access-control-allow-origin"] == PAGE
        assert ask(open_to_page, origin="https://other.example").status_code == 403


def test_where_a_key_is_asked_for_a_preflight_needs_none_and_errors_can_be_read(llm: AsyncLLM) -> None:
    with local_server(llm, allowed_origins=[PAGE], api_key=["sk-a"]) as server:
        preflight = {"origin": PAGE, "access-control-request-method": "POST"}
        assert httpx.options(f"{server.url}/v1/chat/completions", headers=preflight).status_code == 200
        response = ask(server, origin=PAGE)
        assert response.status_code == 401
        assert response.headers["access-control-allow-origin"] == PAGE


@pytest.mark.parametrize(
    ("host", "local"),
    [
        ("", True),
        ("localhost", True),
        ("LOCALHOST:80", True),
        ("localhost.", True),
        ("api.localhost:8000", True),
        ("127.0.0.1:8000", True),
        ("[::1]:8000", True),
        ("192.168.0.7", True),
        ("localhost.attacker.example", False),
        ("127.0.0.1.attacker.example", False),
        ("attacker.example", False),
        ("user@attacker.example", False),
        ("[::1", False),
    ],
)
def test_local_hosts(host: str, local: bool) -> None:
    assert is_local(host) == local
