"""/v1/models, which OpenAI and Anthropic both have: with the fields of either."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from fastapi import APIRouter

from pybatch.serve.service import Served, Service

router = APIRouter()


@router.get("/v1/models")
async def list_models(service: Served) -> dict[str, Any]:
    names = [*service.names, *service.adapters]
    return {
        "object": "list",
        "data": [model(service, name) for name in names],
        # Anthropic's
        "has_more": False,
        "first_id": names[0],
        "last_id": names[-1],
    }


@router.get("/v1/models/{name:path}")
async def retrieve_model(name: str, service: Served) -> dict[str, Any]:
    return model(service, service.expect_model(name, adapters=True))


def model(service: Service, name: str) -> dict[str, Any]:
    length = service.llm.engine.max_model_len
    return {
        "id": name,
        "object": "model",
        "created": service.created,
        "owned_by": "pybatch",
        # vLLM's
        "root": service.names[0],
        "parent": service.names[0] if name in service.adapters else None,
        "max_model_len": length,
        # Anthropic's
        "type": "model",
        "display_name": name,
        "created_at": datetime.fromtimestamp(service.created, UTC).isoformat().replace("+00:00", "Z"),
        "max_input_tokens": length - 1,
        "max_tokens": length - 1,
    }
