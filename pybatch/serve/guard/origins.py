"""Keeps other sites' pages in a user's browser away from a server that asks for no key."""

from __future__ import annotations

import ipaddress
from collections.abc import Collection
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from pybatch.api.outcomes import Failure
from pybatch.serve.guard.refusal import refuse


class Origins:
    """Any page may send a POST to 127.0.0.1 (with a plain content type no preflight comes before it), and one whose own
    name is made to resolve to 127.0.0.1 may read the answers too (DNS rebinding). The first has a foreign Origin, the
    second a foreign Host; programs other than browsers send no Origin.

    allowed: origins besides the server's own; "*": all. local: the server is reached on this machine alone, so that its
    Host is an address or localhost.
    """

    def __init__(self, app: ASGIApp, *, allowed: Collection[str], local: bool) -> None:
        self.app, self.allowed, self.local = app, allowed, local

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        failure = self.fault(Headers(scope=scope)) if scope["type"] == "http" else None
        if failure is None:
            await self.app(scope, receive, send)
        else:
            await refuse(scope, receive, send, 403, failure)

    def fault(self, headers: Headers) -> Failure | None:
        host, origin = headers.get("host", ""), headers.get("origin")
        if self.local and not is_local(host):
            return Failure(f"Host: expected localhost or an address, got {host!r:.80}", "forbidden_host")
        if origin is None or origin in self.allowed or "*" in self.allowed or authority(origin) == host.lower():
            return None
        return Failure(f"Origin: expected one of --allowed-origins, got {origin!r:.80}", "forbidden_origin")


def authority(origin: str) -> str:
    """host:port."""
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return ""


def is_local(host: str) -> bool:
    """Whether a Host header is empty, localhost or an address, which no name server can redirect."""
    try:
        name = (urlsplit(f"//{host}").hostname or "").rstrip(".")
    except ValueError:
        return False
    return name in ("", "localhost") or name.endswith(".localhost") or is_address(name)


def is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
