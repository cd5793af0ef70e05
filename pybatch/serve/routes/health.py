"""Whether the server runs, and which version of it."""

from __future__ import annotations

from fastapi import APIRouter, Response

import pybatch
from pybatch.serve.service import Served

router = APIRouter()


@router.get("/health")
async def health(service: Served) -> Response:
    """503 if the engine has ended: only another start helps then."""
    return await engine_runs(service)


@router.get("/ready")
async def ready(service: Served) -> Response:
    """503 while new requests should go elsewhere."""
    return await engine_runs(service)


async def engine_runs(service: Served) -> Response:
    try:
        await service.llm.check_health()
    except RuntimeError:
        return Response(status_code=503)
    return Response()


@router.get("/version")
async def version() -> dict[str, str]:
    return {"version": pybatch.__version__}
