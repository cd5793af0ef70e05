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
