"""Bodies of requests."""

from __future__ import annotations

import asyncio
import json
from typing import Any, NoReturn

from fastapi import Request

from pybatch.api.protocols.request_error import RequestError

ON_LOOP = 1 << 16  # bytes that are parsed on the event loop; more would hold up other clients


async def read_json(request: Request) -> Any:
    """Raises RequestError if it is not JSON."""
    body = await request.body()
    return parse(body) if len(body) <= ON_LOOP else await asyncio.to_thread(parse, body)


def parse(body: bytes) -> Any:
    if not body.strip():
        raise RequestError("body: expected JSON, got nothing", "invalid_json", "body")
    try:
        return json.loads(body.decode(), parse_constant=refuse)
    except (ValueError, RecursionError) as error:  # broken UTF-8 or JSON, numbers of too many digits, deep nesting
        raise RequestError(f"body: expected JSON: {error}", "invalid_json", "body") from None


def refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no number of JSON")
