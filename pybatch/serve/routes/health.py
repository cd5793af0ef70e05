"""Whether the server runs, and which version of it."""

from __future__ import annotations

from fastapi import APIRouter, Response

import pybatch
from pybatch.serve.service import Served, Service

router = APIRouter()


@router.head("/health", include_in_schema=False)
@router.get("/health")
async def health(service: Served) -> Response:
    """503 if the engine has ended, as the server then does too."""
    return Response(status_code=200 if await engine_runs(service) else 503)


@router.head("/ready", include_in_schema=False)
@router.get("/ready")
async def ready(service: Served) -> Response:
    """503 while new requests should go elsewhere."""
    return Response(status_code=200 if await engine_runs(service) and not service.requests.stopping() else 503)


async def engine_runs(service: Service) -> bool:
    try:
        await service.llm.check_health()
    except RuntimeError:
        return False
    return True


@router.get("/version")
async def version() -> dict[str, str]:
    return {"version": pybatch.__version__}
