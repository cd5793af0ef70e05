"""Requests end when their clients go, when their time is up and when the server stops."""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import threading
import time
from pathlib import Path
from typing import Any

import anthropic
import httpx
import openai
import pytest
from leaving_clients import leave_at_random
from local_server import LocalServer, local_server

from pybatch.api.async_llm import AsyncLLM

CHAT = "/v1/chat/completions"
HELLO: list[Any] = [{"role": "user", "content": "Hello"}]
LONG = {"model": "tiny", "messages": HELLO, "ignore_eos": True, "max_tokens": 400}


def client(server: LocalServer) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


def wait_for(condition: Any) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.mark.usefixtures("slow_steps")
@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_goes_aborts_its_request(llm: AsyncLLM, stream: bool) -> None:
    with local_server(llm) as server:
        body = {**LONG, "n": 2, "stream": stream}
        with contextlib.suppress(httpx.ReadTimeout), httpx.stream("POST", server.url + CHAT, json=body, timeout=0.3):
            assert stream  # the header of a whole answer comes with it
        begin = time.monotonic()
        server.expect_idle()
        assert time.monotonic() - begin < 2  # all of it takes 4 s


def test_disconnects_at_random_moments_leave_nothing(llm: AsyncLLM, caplog: pytest.LogCaptureFixture) -> None:
    with local_server(llm, api_key=["sk-a"], max_concurrent_requests=1000) as server:
        left = asyncio.run(leave_at_random(server.url, "sk-a", 150, random.Random(0)))
        assert sum(left.values()) == 150
        # How many of the other moments there are depends on the machine.
        assert left["in the request"]
        assert left["before the answer"]
        server.expect_idle()
        account = next(iter(server.server.app.state.accounts.of_keys.values()))
        assert account.running == 0
        wait_for(lambda: not server.server.server_state.tasks)
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


def test_uploads_that_break_off_leave_no_file(llm: AsyncLLM, tmp_path: Path) -> None:
    form = b'--b\r\nContent-Disposition: form-data; name="file"; filename="rows"\r\n\r\n' + b"x" * 2_000_000
    head = "Host: localhost\r\nContent-Type: multipart/form-data; boundary=b\r\nContent-Length: 5000000\r\n\r\n"
    with local_server(llm, data_dir=tmp_path) as server:
        for number in range(12):
            with socket.create_connection(server.bound.getsockname()) as connection:
                connection.sendall(f"POST /v1/files HTTP/1.1\r\n{head}".encode() + form)
                time.sleep(0.01 * number)
        server.expect_idle()
        wait_for(lambda: not server.server.server_state.tasks)
    assert not list(tmp_path.rglob("*.part"))


@pytest.mark.usefixtures("slow_steps")
def test_a_request_that_takes_too_long_is_aborted(llm: AsyncLLM) -> None:
    with local_server(llm, request_timeout=0.3) as server:
        begin = time.monotonic()
        retrying = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=3)
        with pytest.raises(openai.InternalServerError, match="the request has taken too long") as error:
            retrying.chat.completions.create(**LONG_ASKED)
        assert error.value.status_code == 504
        assert error.value.code == "request_timeout"
        assert time.monotonic() - begin < 1.2  # it has not been tried again
        stream = client(server).chat.completions.create(**LONG_ASKED, stream=True)
        with pytest.raises(openai.APIError, match="the request has taken too long"):
            assert list(stream)
        claude = anthropic.Anthropic(base_url=server.url, api_key="none", max_retries=0)
        with pytest.raises(anthropic.InternalServerError) as late:
            claude.messages.create(model="tiny", messages=HELLO, max_tokens=400, stop_sequences=["\x00"])
        assert late.value.body["error"]["type"] == "timeout_error"  # type: ignore[index]
        server.expect_idle()


LONG_ASKED: dict[str, Any] = {
    "model": "tiny",
    "messages": HELLO,
    "max_tokens": 200,
    "extra_body": {"ignore_eos": True},
}


class Running:
    """A streamed and a whole request that run."""

    def __init__(self, server: LocalServer) -> None:
        self.chunks: list[Any] = []
        self.errors: list[openai.APIError] = []
        self.answers: list[Any] = []
        self.threads = [
            threading.Thread(target=self.stream, args=[server]),
            threading.Thread(target=self.whole, args=[server]),
        ]
        for thread in self.threads:
            thread.start()
        wait_for(lambda: self.chunks and len(server.service.requests) == 2)

    def stream(self, server: LocalServer) -> None:
        try:
            for chunk in client(server).chat.completions.create(**LONG_ASKED, stream=True):
                self.chunks.append(chunk)
        except openai.APIError as error:
            self.errors.append(error)

    def whole(self, server: LocalServer) -> None:
        try:
            self.answers.append(client(server).chat.completions.create(**LONG_ASKED))
        except openai.APIError as error:
            self.errors.append(error)

    def join(self) -> None:
        for thread in self.threads:
            thread.join(30)


@pytest.mark.usefixtures("slow_steps")
def test_a_server_that_stops_takes_nothing_new_and_finishes_what_runs(llm: AsyncLLM) -> None:
    closed = []

    async def park() -> None:
        closed.append(len(server.service.requests))

    async def fail() -> None:
        raise ValueError("cannot park")

    with local_server(llm) as server, httpx.Client(base_url=server.url) as kept:
        server.service.at_shutdown += [park, fail]
        assert kept.get("/ready").status_code == 200
        running = Running(server)
        server.stop.set()
        assert kept.get("/ready").status_code == 503
        assert kept.get("/health").status_code == 200
        for asking in (kept, httpx):  # a connection that was open, and a new one
            url = CHAT if asking is kept else server.url + CHAT
            response = asking.post(url, json=LONG)  # type: ignore[attr-defined]
            assert response.status_code == 503
            assert response.headers["connection"] == "close"
            assert response.json()["error"]["code"] == "server_stopping"
        wait_for(lambda: closed)
        assert closed[0] >= 2  # batches are parked while requests run
        running.join()
        assert not running.errors
        assert running.chunks[-1].choices[0].finish_reason == "length"
        assert running.answers[0].usage.completion_tokens == 200
        server.thread.join(5)
        assert not server.thread.is_alive()


@pytest.mark.usefixtures("slow_steps")
def test_what_has_not_ended_in_time_is_told(llm: AsyncLLM) -> None:
    with local_server(llm, shutdown_timeout=0.3) as server:
        running = Running(server)
        server.stop.set()
        running.join()
        assert not running.answers
        assert sorted(type(error).__name__ for error in running.errors) == ["APIError", "InternalServerError"]
        assert all("the server is stopping" in str(error) for error in running.errors)
        server.thread.join(5)
        assert not server.thread.is_alive()
        server.expect_idle()


def test_requests_are_told_when_the_engine_ends(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    llm = AsyncLLM(tiny_model, threads=1, num_kv_blocks=64)
    step = llm.engine.step
    monkeypatch.setattr(llm.engine, "step", lambda: time.sleep(0.01) or step())

    def fail() -> None:
        raise MemoryError("as of a fault of the machine")

    with local_server(llm) as server:
        running = Running(server)
        llm.thread._commands.put(fail)
        running.join()
        assert not running.answers
        assert sorted(type(error).__name__ for error in running.errors) == ["APIError", "InternalServerError"]
        server.thread.join(10)
        assert not server.thread.is_alive()
        assert str(server.server.fault) == "the engine's thread has ended: MemoryError: as of a fault of the machine"
    llm.close()
