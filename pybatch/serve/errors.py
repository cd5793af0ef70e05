"""Errors as responses: OpenAI's shape and codes, and Anthropic's where the route is Anthropic's."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Mapping

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from pybatch.api.outcomes import Failure
from pybatch.api.protocols import anthropic
from pybatch.api.protocols.openai_responses import error_body
from pybatch.api.protocols.request_error import RequestError

logger = logging.getLogger(__name__)

CODES = {404: "not_found", 405: "method_not_allowed", 408: "request_timeout", 413: "request_too_large"}
BUSY_SECONDS = 2  # until a request that found the queue full tries again

SERVER_ERROR = Failure("the server has failed; its log says why", "server_error")


class NotFoundError(RequestError):
    """A request for what is not there."""


class RefusedError(Exception):
    """A request that the engine has not answered."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.message)
        self.failure = failure


class QueueFullError(Exception):
    """A request that finds too many others waiting."""


def failure_response(
    request: Request, status: int, failure: Failure, headers: Mapping[str, str] | None = None
) -> JSONResponse:
    if request.url.path.startswith("/v1/messages"):
        content = anthropic.error_response(failure, id=uuid.uuid4().hex)
    else:
        content = error_body(failure)
    return JSONResponse(content, status, headers)


def handle_errors(app: FastAPI) -> None:
    """Nothing leaves the server in another shape."""

    @app.exception_handler(RequestError)
    async def refused(request: Request, error: RequestError) -> JSONResponse:
        status = 404 if isinstance(error, NotFoundError) else 400
        return failure_response(request, status, Failure(str(error), error.code, error.param))

    @app.exception_handler(RefusedError)
    async def failed(request: Request, error: RefusedError) -> JSONResponse:
        status = 500 if error.failure.code == "server_error" else 400
        return failure_response(request, status, error.failure)

    @app.exception_handler(QueueFullError)
    async def busy(request: Request, error: QueueFullError) -> JSONResponse:
        # 503, not 429: it is not this client that asks for too much. Clients try again, and proxies ask another server.
        failure = Failure("too many requests are waiting", "server_busy")
        return failure_response(request, 503, failure, {"Retry-After": str(BUSY_SECONDS)})

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> JSONResponse:
        failure = Failure(f"{request.method} {request.url.path}: {error.detail}", CODES.get(error.status_code, "error"))
        return failure_response(request, error.status_code, failure, error.headers)

    @app.exception_handler(Exception)
    async def unforeseen(request: Request, error: Exception) -> JSONResponse:
        logger.error("%s %s failed", request.method, request.url.path, exc_info=error)
        return failure_response(request, 500, SERVER_ERROR)
