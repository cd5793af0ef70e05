"""Streams of events, through a server of their own whose events the test chooses."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Iterator

import httpx
import pytest
import uvicorn
from fastapi import FastAPI
from fastapi.responses import Response

from pybatch.serve import sse

ENDLESS_CLOSED = threading.Event()


async def events(kind: str) -> AsyncGenerator[bytes, None]:
    try:
        if kind == "late":
            await asyncio.sleep(0.5)
        if kind == "never":
            raise ValueError("no")
        for number in range(3):
            yield sse.event({"number": number, "text": "\u2028é\n"}, "count")
            if kind == "slow":
                await asyncio.sleep(0.5)
        if kind == "broken":
            raise ValueError("no more")
        while kind == "endless":
            yield sse.event("x")
            await asyncio.sleep(0.01)
    finally:
        if kind == "endless":
            ENDLESS_CLOSED.set()


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    app = FastAPI()

    @app.get("/{kind}")
    async def get(kind: str) -> Response:
        try:
            return await sse.event_stream(events(kind), lambda error: sse.event(str(error), "error"))
        except ValueError as error:
            return Response(str(error), 400)

    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error"))
    thread = threading.Thread(target=server.run)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sse, "SILENCE", 0.2)
        thread.start()
        while not server.started:
            thread.join(0.01)
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
        server.should_exit = True
        thread.join()


EVENT = 'event: count\ndata: {"number":%d,"text":"\\u2028\\u00e9\\n"}\n\n'
ALL = "".join(EVENT % number for number in range(3))


def test_events_are_lines_that_any_client_splits(url: str) -> None:
    response = httpx.get(f"{url}/all")
    assert response.text == ALL
    assert response.headers["content-type"].startswith("text/event-stream")
    assert response.headers["cache-control"] == "no-cache"


def test_comments_fill_silence_before_the_first_event_and_between(url: str) -> None:
    late, slow = httpx.get(f"{url}/late").text, httpx.get(f"{url}/slow").text
    assert late.startswith(":\n\n")
    assert ":\n\n" in slow.strip(":\n")
    assert late.replace(":\n\n", "") == slow.replace(":\n\n", "") == ALL


def test_an_error_is_a_response_before_the_first_event_and_an_event_after_it(url: str) -> None:
    response = httpx.get(f"{url}/never")
    assert (response.status_code, response.text) == (400, "no")
    assert httpx.get(f"{url}/broken").text == ALL + "event: error\ndata: no more\n\n"


def test_events_end_when_the_client_has_gone(url: str) -> None:
    with httpx.stream("GET", f"{url}/endless") as response:
        lines = response.iter_lines()
        next(lines)
        assert not ENDLESS_CLOSED.is_set()
    assert ENDLESS_CLOSED.wait(10)
