"""Anthropic's /v1/messages/batches."""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any, TypedDict

from fastapi import APIRouter, Request
from fastapi.responses import FileResponse, Response

from pybatch.api.protocols.fields import expect_fields, expect_given, expect_type
from pybatch.api.protocols.request_error import RequestError
from pybatch.jobs.dialects.choose import ANTHROPIC
from pybatch.serve.bodies import read
from pybatch.serve.errors import NotFoundError
from pybatch.serve.openapi import ANTHROPIC_ERROR, body_schema, documented, errors, object_with
from pybatch.serve.queries import cut
from pybatch.serve.service import Served, Service
from pybatch.serve.store import Batch

router = APIRouter()

DAY = 86_400  # seconds that a batch may take
ID_CHARACTERS = 64


class MessageBatchFields(TypedDict):
    requests: list[dict[str, Any]]


BODY = body_schema(MessageBatchFields)
BATCH = object_with(id=str, type=str, processing_status=str, request_counts=dict, created_at=str, expires_at=str)
EXAMPLE = {
    "requests": [
        {
            "custom_id": "one",
            "params": {"model": "MODEL", "max_tokens": 64, "messages": [{"role": "user", "content": "Hello"}]},
        }
    ]
}
ERRORS: Any = {"responses": errors(ANTHROPIC_ERROR)}


@router.post("/v1/messages/batches", **documented(BODY, answer=BATCH, error=ANTHROPIC_ERROR, example=EXAMPLE))
async def create_message_batch(request: Request, service: Served) -> dict[str, Any]:
    _, requests = await read(request, lambda body: expect_requests(body, service.settings.max_batch_requests))
    now = int(time.time())
    batch = Batch(
        id=f"msgbatch_{uuid.uuid4().hex}",
        door="anthropic",
        status="in_progress",
        created_at=now,
        expires_at=now + DAY,
        format=ANTHROPIC,
        filename="requests",
        total=len(requests),
        in_progress_at=now,
    )
    await asyncio.to_thread(service.batches.add, batch, lines(requests))
    return batch_object(batch, request)


@router.get("/v1/messages/batches", **ERRORS)
async def list_message_batches(request: Request, service: Served) -> dict[str, Any]:
    asked = cut(request.query_params, default=20, most=1000, after="after_id", before="before_id")
    page = await asyncio.to_thread(service.batches.page, "anthropic", asked)
    data = [batch_object(batch, request) for batch in page.items]
    ends = {"first_id": data[0]["id"], "last_id": data[-1]["id"]} if data else {"first_id": None, "last_id": None}
    return {"data": data, "has_more": page.has_more, **ends}


@router.get("/v1/messages/batches/{id}", **ERRORS)
async def retrieve_message_batch(id: str, request: Request, service: Served) -> dict[str, Any]:
    return batch_object(await expect_batch(service, id), request)


@router.post("/v1/messages/batches/{id}/cancel", **ERRORS)
async def cancel_message_batch(id: str, request: Request, service: Served) -> dict[str, Any]:
    batch = await expect_batch(service, id)
    if batch.ended:
        raise RequestError(f"{id}: the batch has ended, so it cannot be canceled")
    await asyncio.to_thread(service.batches.cancel, id)
    return batch_object(await expect_batch(service, id), request)


@router.delete("/v1/messages/batches/{id}", **ERRORS)
async def delete_message_batch(id: str, service: Served) -> dict[str, Any]:
    batch = await expect_batch(service, id)
    if not batch.ended:
        raise RequestError(f"{id}: the batch is in progress; cancel it before it is deleted")
    await asyncio.to_thread(service.batches.delete, batch)
    return {"id": id, "type": "message_batch_deleted"}


@router.get("/v1/messages/batches/{id}/results", response_class=FileResponse, **ERRORS)
async def message_batch_results(id: str, service: Served) -> Response:
    batch = await expect_batch(service, id)
    if batch.output_file_id is None:
        raise NotFoundError(f"{id}: there are no results {'of' if batch.ended else 'yet of'} this batch", "not_found")
    return FileResponse(service.storage.batches.output(id, ".jsonl"), media_type="application/x-jsonl")


async def expect_batch(service: Service, id: str) -> Batch:
    """Raises NotFoundError."""
    batch = await asyncio.to_thread(service.batches.get, id, "anthropic")
    if batch is None:
        raise NotFoundError(f"there is no message batch {id!r:.80}", "not_found")
    return batch


def expect_requests(body: Any, most: int) -> list[dict[str, Any]]:
    """Of a body. What is in the params is each request's own affair. Raises RequestError."""
    expect_fields(body, MessageBatchFields.__annotations__.keys(), {})
    requests: list[dict[str, Any]] = expect_type("requests", expect_given(body, "requests"), list, "a list of requests")
    if not 1 <= len(requests) <= most:
        raise RequestError(f"requests: expected 1 to {most:,}, got {len(requests):,}", "invalid_value", "requests")
    seen: set[str] = set()
    for number, request in enumerate(requests):
        where = f"requests[{number}]"
        expect_fields(expect_type(where, request, dict, "an object"), ("custom_id", "params"), {})
        id = expect_type(f"{where}.custom_id", request.get("custom_id"), str, "text")
        expect_type(f"{where}.params", request.get("params"), dict, "an object")
        if not 1 <= len(id) <= ID_CHARACTERS:
            raise RequestError(f"{where}.custom_id: expected 1 to {ID_CHARACTERS} characters, got {len(id)}")
        if id in seen:
            raise RequestError(f"{where}.custom_id: {id!r} was used before", "duplicate_custom_id", "custom_id")
        seen.add(id)
    return requests


def lines(requests: list[dict[str, Any]]) -> Iterator[bytes]:
    return (json.dumps(request).encode() + b"\n" for request in requests)


def batch_object(batch: Batch, request: Request) -> dict[str, Any]:
    """request: the one that asks for it, by whose address the results are found."""
    results = f"{str(request.base_url).rstrip('/')}/v1/messages/batches/{batch.id}/results"
    return {
        "id": batch.id,
        "type": "message_batch",
        "processing_status": "ended" if batch.ended else "canceling" if batch.status == "cancelling" else "in_progress",
        "request_counts": request_counts(batch),
        "created_at": date(batch.created_at),
        "ended_at": date(batch.ended_at),
        "expires_at": date(batch.expires_at),
        "cancel_initiated_at": date(batch.cancelling_at),
        "archived_at": None,
        "results_url": results if batch.ended and batch.output_file_id else None,
    }


def request_counts(batch: Batch) -> dict[str, int]:
    """Those that a batch ended without are what it ended as."""
    counts = {"processing": 0, "succeeded": batch.completed, "errored": batch.failed, "canceled": 0, "expired": 0}
    place = {"cancelled": "canceled", "expired": "expired", "failed": "errored"}.get(batch.status, "processing")
    counts[place] += batch.total - batch.completed - batch.failed
    return counts


def date(seconds: int | None) -> str | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC).isoformat().replace("+00:00", "Z")
