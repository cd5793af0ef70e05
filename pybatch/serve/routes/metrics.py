"""Metrics for Prometheus."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial

from fastapi import APIRouter, Request
from fastapi.responses import Response
from prometheus_client import CollectorRegistry, exposition
from prometheus_client.openmetrics import exposition as openmetrics

from pybatch.serve.monitoring.monitoring import Monitored

router = APIRouter()

OPENMETRICS = "application/openmetrics-text"


@router.get("/metrics")
async def metrics(request: Request, monitoring: Monitored) -> Response:
    """OpenMetrics where the client takes it, as Prometheus does, or else Prometheus' older text format."""
    encode: Callable[[CollectorRegistry], bytes] = exposition.generate_latest
    media_type = exposition.CONTENT_TYPE_PLAIN_0_0_4
    if any(each.strip().startswith(OPENMETRICS) for each in request.headers.get("accept", "").split(",")):
        # Its default takes the colon of our names, which is allowed in both formats, for one that is not.
        encode = partial(openmetrics.generate_latest, escaping=openmetrics.ALLOWUTF8)
        media_type = openmetrics.CONTENT_TYPE_LATEST
    return Response(await asyncio.to_thread(encode, monitoring.registry), headers={"content-type": media_type})
