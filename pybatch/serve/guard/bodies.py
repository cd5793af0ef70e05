"""Bodies on their way in: not compressed, not too large, not too slow, and not left half sent."""

from __future__ import annotations

import asyncio

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pybatch.api.outcomes import Failure
from pybatch.serve.guard.refusal import refuse

SLOW_SECONDS, SLOW_RATE = 30.0, 1000.0  # a body has so long, and a second more for so many bytes that have come
SMALL, SMALL_SECONDS = 1 << 16, 1.0  # bodies that are read to their end though the answer is known
LINGER_SECONDS = 5.0  # how long the rest of other bodies is discarded after the answer


class BodyLimits:
    """Answers 413 to a body that is larger than allowed, before reading it where its length is announced, 408 to one
    that comes too slowly, and 415 to one that is compressed.

    max_size, max_file_size: in bytes; the second one for uploads, that is, paths in `uploads`.
    """

    def __init__(self, app: ASGIApp, *, max_size: int, max_file_size: int, uploads: frozenset[str]) -> None:
        self.app, self.max_size, self.max_file_size, self.uploads = app, max_size, max_file_size, uploads

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        limit = self.max_file_size if scope["path"] in self.uploads else self.max_size
        headers = Headers(scope=scope)
        body = Body(headers, receive, send, limit)
        if (encoding := headers.get("content-encoding", "").strip().lower()) not in ("", "identity"):
            message = f"content-encoding: expected a body that is not compressed, got {encoding!r:.80}"
            await refuse(scope, body.receive, body.send, 415, Failure(message, "unsupported_media_type"))
        elif body.announced > limit:
            await refuse(scope, body.receive, body.send, 413, Failure(body.too_large, "request_too_large"))
        else:
            await self.app(scope, body.receive, body.send)


class Body:
    """One request's body. Its `receive` and `send` stand in for the request's own.

    An answer may be sent before the body has been read. Closing the connection then makes the client's system discard
    the answer, and reading on has no end: the rest is discarded for a while first.
    """

    def __init__(self, headers: Headers, receive: Receive, send: Send, limit: int) -> None:
        self._receive, self._send, self.limit = receive, send, limit
        length = headers.get("content-length", "0")
        self.announced = int(length) if length.isdecimal() else 0
        self.complete = not self.announced and "transfer-encoding" not in headers
        self.small = 0 < self.announced <= SMALL and "expect" not in headers
        self.size = 0
        self._started = asyncio.get_running_loop().time()

    @property
    def too_large(self) -> str:
        return f"body: expected at most {self.limit:,} bytes"

    async def receive(self) -> Message:
        if self.complete:
            return await self._receive()
        try:
            async with asyncio.timeout_at(self._started + SLOW_SECONDS + self.size / SLOW_RATE):
                message = await self._next()
        except TimeoutError:
            raise HTTPException(408, f"the body came too slowly, {self.size:,} bytes so far") from None
        if self.size > self.limit:
            raise HTTPException(413, self.too_large)
        return message

    async def _next(self) -> Message:
        message = await self._receive()
        if message["type"] == "http.request":
            self.size += len(message.get("body", b""))
            self.complete = not message.get("more_body", False)
        else:
            self.complete = True  # the client has gone
        return message

    async def send(self, message: Message) -> None:
        if not self.complete and message["type"] == "http.response.start":
            if self.small:
                await self._discard(SMALL_SECONDS)
            if not self.complete:
                MutableHeaders(raw=message["headers"])["Connection"] = "close"
        elif not self.complete and message["type"] == "http.response.body" and not message.get("more_body", False):
            await self._send({**message, "more_body": True})
            await self._discard(LINGER_SECONDS)
            message = {"type": "http.response.body", "body": b"", "more_body": False}
        await self._send(message)

    async def _discard(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                while not self.complete:
                    await self._next()
        except TimeoutError:
            pass
