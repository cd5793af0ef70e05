"""Errors as responses: OpenAI's shape and codes, and Anthropic's where the route is Anthropic's."""

from __future__ import annotations

import errno
import json
import logging
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from pybatch.api.outcomes import Failure
from pybatch.api.protocols.anthropic_responses import error_response
from pybatch.api.protocols.openai_responses import error_body
from pybatch.api.protocols.request_error import RequestError
from pybatch.engine.errors import QueueFullError
from pybatch.serve.request_ids import id_header, is_anthropic, request_id
from pybatch.serve.sse import event

logger = logging.getLogger(__name__)

CODES = {404: "not_found", 405: "method_not_allowed", 408: "request_timeout", 413: "request_too_large"}
BUSY_SECONDS = 2  # until a request that found the queue full tries again

DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS)
SERVER_ERROR = Failure("the server has failed; its log says why", "server_error")


class NotFoundError(RequestError):
    """A request for what is not there."""


class RefusedError(Exception):
    """A request that the engine has not answered."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.message)
        self.failure = failure


def failure_of(request: Request, error: Exception) -> tuple[int, Failure]:
    """The status of the response and what it tells, for whatever was raised while the request was answered."""
    if isinstance(error, RequestError):
        status = 404 if isinstance(error, NotFoundError) else 400
        return status, Failure(str(error), error.code, error.param)
    if isinstance(error, RefusedError):
        return (500 if error.failure.code == "server_error" else 400), error.failure
    if isinstance(error, QueueFullError):
        return 503, Failure(f"too many requests are waiting: {error}", "server_busy")
    logger.error("%s %s failed", request.method, request.url.path, exc_info=error)
    if isinstance(error, OSError) and error.errno in DISK_ERRORS:
        return 500, Failure(f"the server's disk: {error.strerror}", "server_error")
    return 500, SERVER_ERROR


def failure_body(request: Request, status: int, failure: Failure) -> dict[str, Any]:
    if is_anthropic(request.url.path):
        return {**error_response(failure, status=status, id=""), "request_id": request_id(request.scope)}
    return error_body(failure)


def failure_event(request: Request, status: int, failure: Failure) -> bytes:
    """The last event of a stream that fails."""
    return event(failure_body(request, status, failure), "error" if is_anthropic(request.url.path) else None)


class ErrorResponse(JSONResponse):
    """In ASCII: a message may quote what is not Unicode, such as the name of an unknown field."""

    def render(self, content: Any) -> bytes:
        return json.dumps(content).encode()


def failure_response(
    request: Request, status: int, failure: Failure, headers: Mapping[str, str] | None = None
) -> JSONResponse:
    name, value = id_header(request.scope)
    return ErrorResponse(failure_body(request, status, failure), status, {**(headers or {}), name: value})


def handle_errors(app: FastAPI) -> None:
    """Nothing leaves the server in another shape."""

    @app.exception_handler(QueueFullError)
    async def busy(request: Request, error: QueueFullError) -> JSONResponse:
        # 503, not 429: it is not this client that asks for too much. Clients try again, and proxies ask another server.
        return failure_response(request, *failure_of(request, error), {"Retry-After": str(BUSY_SECONDS)})

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> JSONResponse:
        allowed = (error.headers or {}).get("Allow")
        hint = "" if allowed is None else f"; expected {allowed}"
        message = f"{request.method} {request.url.path}: {error.detail}{hint}"
        failure = Failure(message, CODES.get(error.status_code, "error"))
        return failure_response(request, error.status_code, failure, error.headers)

    @app.exception_handler(RequestError)
    @app.exception_handler(RefusedError)
    @app.exception_handler(OSError)
    @app.exception_handler(Exception)
    async def raised(request: Request, error: Exception) -> JSONResponse:
        return failure_response(request, *failure_of(request, error))
