"""What the live page shows, as JSON."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator

from fastapi import APIRouter
from fastapi.responses import Response, StreamingResponse

from pybatch.serve.monitoring.history import INTERVAL
from pybatch.serve.monitoring.monitoring import Monitored, Monitoring
from pybatch.serve.monitoring.snapshot import snapshot
from pybatch.serve.sse import HEADERS

router = APIRouter()


@router.get("/stats")
async def stats(monitoring: Monitored, since: float = 0.0) -> Response:
    """The server at a glance. Its series begin after `since`, in seconds since 1970: the newest time that the client
    has."""
    shown, _ = await asyncio.to_thread(encoded, monitoring, since)
    return Response(shown, media_type="application/json")


@router.get("/stats/stream")
async def stream_stats(monitoring: Monitored, since: float = 0.0) -> Response:
    """The same as server-sent events, one at each interval, with what is new of the series."""
    return StreamingResponse(events(monitoring, since), media_type="text/event-stream", headers=HEADERS)


async def events(monitoring: Monitoring, since: float) -> AsyncIterator[bytes]:
    while True:
        shown, since = await asyncio.to_thread(encoded, monitoring, since)
        yield b"data: " + shown + b"\n\n"
        await asyncio.sleep(INTERVAL)


def encoded(monitoring: Monitoring, since: float) -> tuple[bytes, float]:
    """With the newest time in it."""
    points = monitoring.history.points(since)
    shown = snapshot(monitoring.service, monitoring.http, points)
    return json.dumps(shown, separators=(",", ":")).encode(), points[-1].time if points else since
