"""What lies around every request: its id, and that it is counted, logged and shown."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pybatch.serve.monitoring.http import HttpLoad
from pybatch.serve.request_ids import id_header, request_id
from pybatch.serve.watched import CURRENT, Watched

TRACE_HEADERS = (b"traceparent", b"tracestate")


class Watch:
    """Goes around the whole application, so that it sees what middleware refuses and what fails.

    ended: called with each request when its response has been sent, or its client has gone.
    """

    def __init__(self, app: ASGIApp, http: HttpLoad, ended: Iterable[Callable[[Watched], object]] = ()) -> None:
        self.app, self.http, self.ended = app, http, list(ended)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request = Watched(request_id(scope), scope["method"], scope["path"], trace_headers(scope))
        complete = False

        async def watched_send(message: Message) -> None:
            nonlocal complete
            if message["type"] == "http.response.start":
                request.status = message["status"]
                MutableHeaders(scope=message).setdefault(*id_header(scope))
            await send(message)
            complete = message["type"] == "http.response.body" and not message.get("more_body", False)

        self.http.begin(request)
        token = CURRENT.set(request)
        try:
            await self.app(scope, receive, watched_send)
        finally:
            CURRENT.reset(token)
            request.ended, request.gone = time.perf_counter(), not complete
            request.route = getattr(scope.get("route"), "path", None)
            self.http.end(request)
            for each in self.ended:
                each(request)
            request.params = None  # which may be large, and the request is still shown


def trace_headers(scope: Scope) -> dict[str, str]:
    return {name.decode(): value.decode("latin-1") for name, value in scope["headers"] if name in TRACE_HEADERS}
