"""How long a request lives: until it is answered, its client goes away, its time is up or the server ends."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Literal

from fastapi import Request
from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pybatch.api.outcomes import Failure
from pybatch.serve.errors import failure_event
from pybatch.serve.guard.refusal import refuse

End = Literal["gone", "late", "stopped"]

STILL_ANSWERED = frozenset({"/health", "/ready", "/metrics", "/stats"})  # while the server stops
TELL_SECONDS = 2.0  # for the last words to a client, which may have ceased to read
RETRY_SECONDS = 5  # when to try again: another server, or this one after its restart

STOPPING = Failure("the server is stopping", "server_stopping")
STOPPING_HEADERS = {"Connection": "close", "Retry-After": str(RETRY_SECONDS)}


class OpenRequests:
    """Those that are being answered. stopping: whether no new ones are taken."""

    def __init__(self) -> None:
        self.stopping: Callable[[], bool] = lambda: False
        self._open: set[Exchange] = set()

    def __len__(self) -> int:
        return len(self._open)

    async def run(self, exchange: Exchange, app: ASGIApp, timeout: float | None) -> None:
        self._open.add(exchange)
        try:
            await exchange.run(app, timeout)
        finally:
            self._open.discard(exchange)

    async def drain(self, seconds: float) -> int:
        """Waits for the open requests, and ends those that are still open after so many seconds; returns their number.
        Streams without an end of their own are ended at once."""
        for exchange in self._open:
            if exchange.endless:
                exchange.end("stopped")
        await self._none_left(seconds)
        left = list(self._open)
        for exchange in left:
            exchange.end("stopped")
        await self._none_left(2 * TELL_SECONDS)
        return len(left)

    async def _none_left(self, seconds: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while self._open:
                    await asyncio.sleep(0.02)


class Lifetime:
    """Ends what runs for a request by cancelling its task: what it had in the engine is aborted there.

    So every route has to bear being cancelled where it awaits. timeout: seconds that a request may take; None: any
    number.
    """

    def __init__(self, app: ASGIApp, *, requests: OpenRequests, timeout: float | None) -> None:
        self.app, self.requests, self.timeout = app, requests, timeout

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
        elif self.requests.stopping() and scope["path"] not in STILL_ANSWERED:
            await refuse(scope, receive, send, 503, STOPPING, STOPPING_HEADERS)
        else:
            await self.requests.run(Exchange(scope, receive, send), self.app, self.timeout)


class Exchange:
    """A request and its response."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.scope, self._receive, self._send = scope, receive, send
        self.why: End | None = None
        self.started = self.answered = self.is_stream = False
        self._body_read = asyncio.Event()
        self._gone = asyncio.Event()

    @property
    def endless(self) -> bool:
        """A stream that was asked for by GET tells what goes on in the server, as long as that runs."""
        return self.is_stream and self.scope["method"] == "GET"

    async def run(self, app: ASGIApp, timeout: float | None) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._task, loop = task, asyncio.get_running_loop()
        watcher = loop.create_task(self._watch())
        timer = None if timeout is None else loop.call_later(timeout, self.end, "late")
        try:
            await app(self.scope, self.receive, self.send)
        except ClientDisconnect:  # while its body was read
            pass
        except asyncio.CancelledError:
            if self.why is None:
                raise
            task.uncancel()
            await self._tell()
        finally:
            watcher.cancel()
            if timer is not None:
                timer.cancel()

    def end(self, why: End) -> None:
        """Does nothing once the answer is complete."""
        if self.why is None and not self.answered:
            self.why = why
            self._task.cancel()

    async def receive(self) -> Message:
        if self._body_read.is_set():
            await self._gone.wait()
            return {"type": "http.disconnect"}
        message = await self._receive()
        if message["type"] == "http.request" and not message.get("more_body", False):
            self._body_read.set()
        return message

    async def send(self, message: Message) -> None:
        await self._send(message)
        if message["type"] == "http.response.start":
            self.started = True
            self.is_stream = Headers(raw=message["headers"]).get("content-type", "").startswith("text/event-stream")
        elif message["type"] == "http.response.body" and not message.get("more_body", False):
            self.answered = True

    async def _watch(self) -> None:
        """Before the body has been read, the one who reads it learns that the client has gone, and may clean up."""
        await self._body_read.wait()
        while not self._gone.is_set():
            if (await self._receive())["type"] == "http.disconnect":
                self._gone.set()
        self.end("gone")

    async def _tell(self) -> None:
        if self.why == "gone" or (self.started and not self.is_stream):
            return  # a response that breaks off has its connection closed, by which the client knows
        with suppress(TimeoutError):
            async with asyncio.timeout(TELL_SECONDS):
                await (self._tell_stream if self.started else self._tell_whole)()

    async def _tell_whole(self) -> None:
        if self.why == "late":
            # OpenAI's and Anthropic's clients try again unless told not to: that would take as long, and fail.
            await refuse(self.scope, self._receive, self._send, 504, self._failure, {"x-should-retry": "false"})
        else:
            await refuse(self.scope, self._receive, self._send, 503, self._failure, STOPPING_HEADERS)

    async def _tell_stream(self) -> None:
        event = failure_event(Request(self.scope), 504 if self.why == "late" else 503, self._failure)
        await self._send({"type": "http.response.body", "body": event, "more_body": False})

    @property
    def _failure(self) -> Failure:
        return Failure("the request has taken too long", "request_timeout") if self.why == "late" else STOPPING
