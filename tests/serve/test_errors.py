"""The shape of errors."""

from __future__ import annotations

import httpx
import pytest
from live_server import Server


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "code"),
    [
        ("GET", "/nowhere", b"", 404, "not_found"),
        ("DELETE", "/v1/models", b"", 405, "method_not_allowed"),
        ("POST", "/v1/chat/completions", b"", 400, "invalid_json"),
        ("POST", "/v1/chat/completions", b"{", 400, "invalid_json"),
        ("POST", "/v1/chat/completions", b'{"model": "\xff"}', 400, "invalid_json"),
        ("POST", "/v1/chat/completions", b'{"temperature": NaN}', 400, "invalid_json"),
        ("POST", "/v1/chat/completions", b"[" * 100_000, 400, "invalid_json"),
        ("POST", "/v1/chat/completions", b"[]", 400, "invalid_type"),
    ],
)
def test_errors_have_openai_s_shape(
    server: Server, method: str, path: str, body: bytes, status: int, code: str
) -> None:
    response = httpx.request(method, server.url + path, content=body)
    assert response.status_code == status
    error = response.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert error["code"] == code


def test_what_is_wrong_with_the_path_or_the_method_is_told(server: Server) -> None:
    def told(method: str, path: str) -> str:
        message: str = httpx.request(method, server.url + path).json()["error"]["message"]
        return message

    for path in ("/chat/completions", "/v1/v1/chat/completions", "/v1/v1/chat/completions/"):
        assert told("POST", path) == f"POST {path}: Not Found; did you mean /v1/chat/completions?"
    assert told("POST", "/v1/v1/messages").endswith("did you mean /v1/messages?")
    assert told("GET", "/v1/health").endswith("did you mean /health?")
    assert told("POST", "/v1/images") == "POST /v1/images: Not Found"
    assert told("GET", "/v1/completions") == "GET /v1/completions: Method Not Allowed; expected POST"
    assert told("POST", "/v1/completions") == "body: expected JSON, got nothing"


def test_a_slash_at_the_end_changes_nothing(server: Server) -> None:
    assert httpx.get(f"{server.url}/version/").json() == httpx.get(f"{server.url}/version").json()
    body = {"model": "tiny", "max_tokens": 2, "messages": [{"role": "user", "content": "x"}]}
    for path in ("/v1/messages/", "/v1/chat/completions/"):
        assert httpx.post(server.url + path, json=body).status_code == 200


def test_load_balancers_may_ask_with_head(server: Server) -> None:
    for path in ("/health", "/ready"):
        assert httpx.head(server.url + path).status_code == 200
