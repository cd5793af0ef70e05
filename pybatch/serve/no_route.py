"""Paths that no route has, as clients with a base URL that is not quite right ask for them."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.exceptions import HTTPException
from starlette.routing import Match
from starlette.types import Receive, Scope, Send

VERSION = "/v1"


class NoRoute:
    """Answers a path with a slash too many at its end as the one without; any other with 404, and the path that is
    meant where only the version in front is missing or there twice."""

    def __init__(self, router: APIRouter) -> None:
        self.router = router

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path: str = scope["path"]
        shorter = path.rstrip("/")
        if path != shorter and self.has(scope, shorter):
            scope["path"] = shorter
            await self.router(scope, receive, send)
            return
        bare = shorter
        while bare.startswith(VERSION + "/"):
            bare = bare.removeprefix(VERSION)
        for meant in (VERSION + bare, bare):
            if self.has(scope, meant):
                raise HTTPException(404, f"Not Found; did you mean {meant}?")
        raise HTTPException(404)

    def has(self, scope: Scope, path: str) -> bool:
        other = {**scope, "path": path}
        return any(route.matches(other)[0] is not Match.NONE for route in self.router.routes)
