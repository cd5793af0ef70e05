"""Answers to requests that do not reach a route."""

from __future__ import annotations

from collections.abc import Mapping

from fastapi import Request
from starlette.types import Receive, Scope, Send

from pybatch.api.outcomes import Failure
from pybatch.serve.errors import failure_response


async def refuse(
    scope: Scope, receive: Receive, send: Send, status: int, failure: Failure, headers: Mapping[str, str] | None = None
) -> None:
    await failure_response(Request(scope), status, failure, headers)(scope, receive, send)
