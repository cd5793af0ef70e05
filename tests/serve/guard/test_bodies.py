"""Bodies that are too large, too slow, or left half sent."""

from __future__ import annotations

import gzip
import socket
import time
from collections.abc import Iterator

import httpx
import pytest
from local_server import LocalServer, local_server

from pybatch.api.async_llm import AsyncLLM
from pybatch.serve.guard import bodies

PATH = "/v1/chat/completions"
LIMIT = 100_000


@pytest.fixture(scope="module")
def server(llm: AsyncLLM) -> Iterator[LocalServer]:
    with local_server(llm, max_body_size=LIMIT, max_file_size=3 * LIMIT) as server:
        yield server


def connect(server: LocalServer) -> socket.socket:
    host, _, port = server.url.removeprefix("http://").rpartition(":")
    return socket.create_connection((host, int(port)), 20)


def head(*headers: str, path: str = PATH) -> bytes:
    return "\r\n".join([f"POST {path} HTTP/1.1", "Host: localhost", *headers, "", ""]).encode()


def send_forever(connection: socket.socket, piece: bytes) -> None:
    while True:
        connection.sendall(piece)


def status(connection: socket.socket) -> int:
    return int(connection.recv(65536).split()[1])


def test_a_body_of_the_limit_is_read_and_one_byte_more_is_not(server: LocalServer) -> None:
    with httpx.Client(base_url=server.url) as client:
        response = client.post(PATH, content=b" " * LIMIT)
        assert (response.status_code, response.json()["error"]["code"]) == (400, "invalid_json")
        response = client.post(PATH, content=b" " * (LIMIT + 1))
        assert (response.status_code, response.json()["error"]["code"]) == (413, "request_too_large")
        assert client.get("/v1/models").status_code == 200


def test_a_compressed_body_is_refused_in_those_words(server: LocalServer) -> None:
    content = gzip.compress(b'{"prompt": "Say 1"}')
    for path in (PATH, "/v1/messages", "/v1/files"):
        response = httpx.post(server.url + path, content=content, headers={"Content-Encoding": "gzip"})
        assert response.status_code == 415
        message = response.json()["error"]["message"]
        assert message.endswith("content-encoding: expected a body that is not compressed, got 'gzip'")
    response = httpx.post(server.url + PATH, content=b"{", headers={"Content-Encoding": "identity"})
    assert response.json()["error"]["code"] == "invalid_json"


def test_an_announced_body_is_refused_before_any_of_it_comes(server: LocalServer) -> None:
    with connect(server) as connection:
        connection.sendall(head(f"Content-Length: {1 << 40}"))
        assert status(connection) == 413
    with connect(server) as connection:  # and without asking for it
        connection.sendall(head(f"Content-Length: {1 << 40}", "Expect: 100-continue"))
        assert status(connection) == 413


def test_a_body_in_chunks_is_refused_while_it_comes_and_the_client_reads_the_answer(server: LocalServer) -> None:
    def pieces() -> Iterator[bytes]:
        for _ in range(200):
            yield b" " * 10_000

    response = httpx.post(server.url + PATH, content=pieces())
    assert response.status_code == 413
    assert response.headers["connection"] == "close"
    assert response.json()["error"]["message"].endswith("body: expected at most 100,000 bytes")


def test_an_upload_without_end_is_answered_and_ends(server: LocalServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bodies, "LINGER_SECONDS", 0.2)
    with connect(server) as connection:
        connection.sendall(head("Transfer-Encoding: chunked"))
        piece = b"4000\r\n" + b" " * 0x4000 + b"\r\n"
        with pytest.raises((ConnectionResetError, BrokenPipeError)):
            send_forever(connection, piece)
    server.expect_idle()


def test_uploads_have_a_limit_of_their_own(server: LocalServer) -> None:
    for path, size, refused in (("/v1/files", 2 * LIMIT, False), ("/v1/files", 3 * LIMIT + 1, True)):
        response = httpx.post(server.url + path, content=b" " * size)
        assert (response.status_code == 413) == refused


def test_a_slow_body_is_refused(server: LocalServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bodies, "SLOW_SECONDS", 0.3)
    monkeypatch.setattr(bodies, "LINGER_SECONDS", 0.1)
    with connect(server) as connection:
        connection.sendall(head("Content-Length: 50000"))
        connection.sendall(b" " * 10)
        answer = b"".join(iter(lambda: connection.recv(65536), b""))  # until it is closed
        assert answer.startswith(b"HTTP/1.1 408 ")
        assert b'"request_timeout"' in answer


def test_what_comes_at_a_fair_pace_may_take_longer(server: LocalServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bodies, "SLOW_SECONDS", 0.2)
    with connect(server) as connection:
        connection.sendall(head("Content-Length: 5000"))
        for _ in range(10):
            connection.sendall(b" " * 500)  # half a second's worth
            time.sleep(0.05)
        assert status(connection) == 400


def test_a_connection_lives_on_where_a_small_body_was_not_read(llm: AsyncLLM) -> None:
    with local_server(llm, api_key=["sk-a"]) as server, httpx.Client(base_url=server.url) as client:
        for _ in range(2):
            response = client.post(PATH, content=b"12345")
            assert response.status_code == 401
            assert "connection" not in response.headers
