"""OpenAI's /v1/models."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter

from pybatch.serve.service import Served, Service

router = APIRouter()


@router.get("/v1/models")
async def list_models(service: Served) -> dict[str, Any]:
    return {"object": "list", "data": [model(service, name) for name in service.names]}


@router.get("/v1/models/{name:path}")
async def retrieve_model(name: str, service: Served) -> dict[str, Any]:
    return model(service, service.expect_model(name))


def model(service: Service, name: str) -> dict[str, Any]:
    """max_model_len is vLLM's field."""
    return {
        "id": name,
        "object": "model",
        "created": service.created,
        "owned_by": "pybatch",
        "root": service.names[0],
        "parent": None,
        "max_model_len": service.llm.engine.max_model_len,
    }
