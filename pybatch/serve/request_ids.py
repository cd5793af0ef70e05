"""Every request has an id, which its response tells in a header, so that a client's report can be found in the log."""

from __future__ import annotations

import uuid

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send


def is_anthropic(path: str) -> bool:
    """Whether the path is one of Anthropic's API."""
    return path == "/v1/messages" or path.startswith("/v1/messages/")


def request_id(scope: Scope) -> str:
    """Without a prefix; made when it is first asked for."""
    id: str = scope.setdefault("state", {}).setdefault("request_id", uuid.uuid4().hex)
    return id


def id_header(scope: Scope) -> tuple[str, str]:
    return ("request-id" if is_anthropic(scope["path"]) else "x-request-id"), f"req_{request_id(scope)}"


class RequestIds:
    """Adds the header to responses that lack it."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).setdefault(*id_header(scope))
            await send(message)

        await self.app(scope, receive, send_with_id if scope["type"] == "http" else send)
