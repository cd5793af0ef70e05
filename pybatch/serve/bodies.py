"""Bodies of requests."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any, NoReturn, TypeVar

from fastapi import Request

from pybatch.api.protocols.request_error import RequestError

T = TypeVar("T")

ON_LOOP = 1 << 16  # bytes that are read on the event loop; more would hold up other clients


async def read(request: Request, make: Callable[[Any], T]) -> tuple[Any, T]:
    """The body's JSON, and what `make` makes of it. Raises RequestError if it is not JSON, and what `make` raises."""
    content = await request.body()

    def made() -> tuple[Any, T]:
        body = parse(content)
        return body, make(body)

    return made() if len(content) <= ON_LOOP else await asyncio.to_thread(made)


def parse(body: bytes) -> Any:
    if not body.strip():
        raise RequestError("body: expected JSON, got nothing", "invalid_json", "body")
    try:
        return json.loads(body.decode(), parse_constant=refuse)
    except (ValueError, RecursionError) as error:  # broken UTF-8 or JSON, numbers of too many digits, deep nesting
        raise RequestError(f"body: expected JSON: {error}", "invalid_json", "body") from None


def refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no number of JSON")
