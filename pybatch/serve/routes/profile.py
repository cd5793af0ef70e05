"""Profiles of the engine's steps, where the server was started with --profile: vLLM's routes."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request

from pybatch.api.protocols.request_error import RequestError
from pybatch.serve.bodies import read
from pybatch.serve.monitoring.monitoring import Monitored
from pybatch.serve.monitoring.profiler import Profiler

router = APIRouter()


@router.post("/start_profile")
async def start_profile(request: Request, monitoring: Monitored) -> dict[str, Any]:
    """A body is not needed. {"num_steps": N}: the profile ends, and is written, after N steps of the engine."""
    _, steps = await read(request, steps_of) if await request.body() else (None, None)
    return {"file": str(await profiler_of(monitoring).start(steps)), "num_steps": steps}


@router.post("/stop_profile")
async def stop_profile(monitoring: Monitored) -> dict[str, Any]:
    """Ends the profile and writes it; the file of one that has ended by itself is told again."""
    return {"file": str(await profiler_of(monitoring).stop())}


def steps_of(body: Any) -> int | None:
    """Raises RequestError."""
    steps = body.get("num_steps") if isinstance(body, dict) else body
    if steps is None:
        return None
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise RequestError(f"num_steps: expected an integer of at least 1, got {steps!r:.80}", param="num_steps")
    return steps


def profiler_of(monitoring: Monitored) -> Profiler:
    assert monitoring.profiler is not None  # without it the routes are not there
    return monitoring.profiler
