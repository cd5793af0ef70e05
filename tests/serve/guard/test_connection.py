"""Clients that send their header slowly, or not at all."""

from __future__ import annotations

import socket
import time

import pytest
from local_server import LocalServer, local_server

from pybatch.api.async_llm import AsyncLLM
from pybatch.serve.guard import connection


def connect(server: LocalServer) -> socket.socket:
    host, _, port = server.url.removeprefix("http://").rpartition(":")
    return socket.create_connection((host, int(port)), 20)


def seconds_until_closed(client: socket.socket) -> float:
    begin = time.monotonic()
    assert client.recv(1) == b""
    return time.monotonic() - begin


def test_a_header_has_its_time(llm: AsyncLLM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "HEADER_SECONDS", 0.3)
    with local_server(llm) as server:
        with connect(server) as slow:
            slow.sendall(b"GET /health HT")
            time.sleep(0.2)
            slow.sendall(b"TP/1.1\r\nA: ")  # which gains no time
            assert seconds_until_closed(slow) < 0.25
        with connect(server) as client:
            request = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
            client.sendall(request[:9])
            client.sendall(request[9:])
            assert client.recv(9999).startswith(b"HTTP/1.1 200")
            time.sleep(0.4)  # between requests there is more time
            client.sendall(request[:9])
            time.sleep(0.1)
            client.sendall(request[9:])
            assert client.recv(9999).startswith(b"HTTP/1.1 200")
            client.sendall(request[:9])
            assert 0.2 < seconds_until_closed(client) < 5


def test_a_silent_connection_ends(llm: AsyncLLM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "IDLE_SECONDS", 0.2)
    with local_server(llm) as server, connect(server) as silent:
        assert seconds_until_closed(silent) < 5


def test_a_long_answer_outlives_both(llm: AsyncLLM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "HEADER_SECONDS", 0.2)
    monkeypatch.setattr(connection, "IDLE_SECONDS", 0.2)
    with local_server(llm) as server, connect(server) as client:
        body = b"   {"
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n".encode()
        client.sendall(head + body[:1])
        time.sleep(0.5)
        client.sendall(body[1:])
        assert client.recv(9999).startswith(b"HTTP/1.1 400")
