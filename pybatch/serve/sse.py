"""Server-sent events: responses that go on while an answer is made."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Any

from fastapi.responses import StreamingResponse
from starlette.types import Message, Send

SILENCE = 15.0  # seconds after which a comment tells proxies and clients that the stream is alive

HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}  # the latter asks nginx not to collect events

Events = AsyncGenerator[bytes, None]

encode = json.JSONEncoder(separators=(",", ":")).encode


def event(data: Any, name: str | None = None) -> bytes:
    """data: text of one line, or what JSON has. All that is not ASCII is escaped, since some clients take characters
    such as U+2028 for the end of a line."""
    text = data if isinstance(data, str) else encode(data)
    head = "" if name is None else f"event: {name}\n"
    return f"{head}data: {text}\n\n".encode()


async def event_stream(events: Events, failed: Callable[[Exception], bytes]) -> StreamingResponse:
    """A response of events as they come. It begins with the first one, or after SILENCE.

    What `events` raises before that is raised here, so that it can be a response with the status of an error; later
    `failed` makes the last event of it. `events` is closed when the client has gone.
    """
    first = asyncio.ensure_future(anext(events, b""))
    try:
        await asyncio.wait([first], timeout=SILENCE)
        if first.done():
            first.result()
    except BaseException:
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        await events.aclose()
        raise
    return EventResponse(following(first, events, failed), media_type="text/event-stream", headers=HEADERS)


async def following(first: asyncio.Future[bytes], events: Events, failed: Callable[[Exception], bytes]) -> Events:
    async with aclosing(events):
        try:
            yield await first
            async for each in events:
                yield each
        except Exception as error:
            yield failed(error)


class EventResponse(StreamingResponse):
    """Sends a comment whenever nothing else was sent for SILENCE."""

    async def stream_response(self, send: Send) -> None:
        time = asyncio.get_running_loop().time
        last = time()

        async def noted(message: Message) -> None:
            nonlocal last
            last = time()
            await send(message)

        async def comment() -> None:
            while True:
                await asyncio.sleep(last + SILENCE - time())
                if time() >= last + SILENCE:
                    await noted({"type": "http.response.body", "body": b":\n\n", "more_body": True})

        comments = asyncio.create_task(comment())
        try:
            await super().stream_response(noted)
        finally:
            comments.cancel()
