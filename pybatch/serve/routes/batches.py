"""OpenAI's /v1/batches."""

from __future__ import annotations

import asyncio
import json
import re
import time
import uuid
from collections.abc import Mapping as AnyMapping
from dataclasses import replace
from typing import Any, Required, TypedDict

from fastapi import APIRouter, Request

from pybatch.api.protocols.fields import expect_fields, expect_given, expect_type
from pybatch.api.protocols.messages import expect_unicode
from pybatch.api.protocols.request_error import RequestError
from pybatch.jobs.dialects.choose import OPENAI, ROWS
from pybatch.jobs.dialects.openai_batch import ENDPOINTS, POOLING_URLS
from pybatch.serve.batches import Mapping
from pybatch.serve.bodies import read
from pybatch.serve.bounds import expect_short_lists
from pybatch.serve.errors import NotFoundError
from pybatch.serve.expiry import seconds_of
from pybatch.serve.openapi import body_schema, documented, errors, object_with
from pybatch.serve.queries import cut
from pybatch.serve.routes.files import expect_file, listed
from pybatch.serve.service import Served, Service
from pybatch.serve.store import Batch

router = APIRouter()


class BatchFields(TypedDict, total=False):
    """OpenAI's, and mapping: as Mapping has it."""

    input_file_id: Required[str]
    endpoint: Required[str]
    completion_window: Required[str]
    metadata: dict[str, str] | None
    output_expires_after: dict[str, Any] | None
    mapping: dict[str, Any] | None


BODY = body_schema(BatchFields)
BATCH = object_with(id=str, object=str, status=str, endpoint=str, input_file_id=str, created_at=int)
EXAMPLE = {"input_file_id": "file-ID", "endpoint": "/v1/chat/completions", "completion_window": "24h"}
KEYS, KEY_CHARACTERS, VALUE_CHARACTERS = 16, 64, 512  # of metadata
HOURS = {"h": 1, "d": 24}
MOST_HOURS = 30 * 24


@router.post("/v1/batches", **documented(BODY, answer=BATCH, example=EXAMPLE))
async def create_batch(request: Request, service: Served) -> dict[str, Any]:
    _, asked = await read(request, batch_request)
    file = await expect_file(service, str(asked.input_file_id))
    if file.purpose != "batch":
        raise RequestError(
            f"input_file_id: expected a file of purpose 'batch', got {file.purpose!r}", "invalid_value", "input_file_id"
        )
    if asked.mapping is not None:  # whose lists every row would have
        expect_short_lists(asked.mapping.get("params", {}), service.vocab_size, {})
    batch = replace(asked, filename=file.filename)
    await asyncio.to_thread(service.batches.add, batch, service.storage.files.path(file))
    return batch_object(batch)


def batch_request(body: Any) -> Batch:
    """A new batch, but for its file's name. Raises RequestError."""
    expect_fields(body, BatchFields.__annotations__.keys(), {})
    expect_unicode("body", json.dumps(body, ensure_ascii=False))  # it is told of again in every list
    file_id = expect_type("input_file_id", expect_given(body, "input_file_id"), str, "the id of a file")
    endpoint, window = expect_given(body, "endpoint"), expect_given(body, "completion_window")
    if not isinstance(endpoint, str) or endpoint not in ENDPOINTS:
        expected = " or ".join(ENDPOINTS)
        raise RequestError(f"endpoint: expected {expected}, got {endpoint!r:.80}", "invalid_value", "endpoint")
    mapping = None if body.get("mapping") is None else Mapping.from_body(body["mapping"])
    if mapping is not None and endpoint in POOLING_URLS:
        raise RequestError(f"mapping: expected none with {endpoint}", "invalid_value", "mapping")
    now = int(time.time())
    return Batch(
        id=f"batch_{uuid.uuid4().hex}",
        door="openai",
        status="validating",
        created_at=now,
        expires_at=now + 3600 * hours(window),
        format=OPENAI if mapping is None else ROWS,
        filename="",
        input_file_id=file_id,
        endpoint=endpoint,
        completion_window=window,
        metadata=expect_metadata(body.get("metadata")),
        mapping=None if mapping is None else mapping.to_json(),
        output_seconds=seconds_of("output_expires_after", body.get("output_expires_after")),
    )


@router.get("/v1/batches", responses=errors())
async def list_batches(request: Request, service: Served) -> dict[str, Any]:
    asked = cut(request.query_params, default=20, most=100)
    page = await asyncio.to_thread(service.batches.page, "openai", asked)
    return listed([batch_object(batch) for batch in page.items], page.has_more)


@router.get("/v1/batches/{id}", responses=errors())
async def retrieve_batch(id: str, service: Served) -> dict[str, Any]:
    return batch_object(await expect_batch(service, id))


@router.post("/v1/batches/{id}/cancel", responses=errors())
async def cancel_batch(id: str, service: Served) -> dict[str, Any]:
    await expect_batch(service, id)
    cancelled = await asyncio.to_thread(service.batches.cancel, id)
    batch = await expect_batch(service, id)
    if not cancelled and batch.status not in ("cancelling", "cancelled"):
        raise RequestError(f"the batch cannot be cancelled any more: it is {batch.status}", "invalid_status")
    return batch_object(batch)


async def expect_batch(service: Service, id: str) -> Batch:
    """Raises NotFoundError."""
    batch = await asyncio.to_thread(service.batches.get, id, "openai")
    if batch is None:
        raise NotFoundError(f"there is no batch {id!r:.80}", "not_found", "id")
    return batch


def hours(window: Any) -> int:
    """Of "24h", "7d" and the like. OpenAI knows 24h alone."""
    found = re.fullmatch(r"([1-9][0-9]{0,3})([hd])", window) if isinstance(window, str) else None
    number = int(found[1]) * HOURS[found[2]] if found else 0
    if not 1 <= number <= MOST_HOURS:
        raise RequestError(
            f"completion_window: expected '24h' or the like, from '1h' to '30d', got {window!r:.80}",
            "invalid_value",
            "completion_window",
        )
    return number


def expect_metadata(metadata: Any) -> dict[str, str] | None:
    """Raises RequestError."""
    if metadata is None:
        return None
    expect_type("metadata", metadata, AnyMapping, "an object")
    if len(metadata) > KEYS:
        raise RequestError(f"metadata: expected at most {KEYS} keys, got {len(metadata)}", "invalid_value", "metadata")
    for key, value in metadata.items():
        expect_type(f"metadata.{key:.80}", value, str, "text")
        if len(key) > KEY_CHARACTERS or len(value) > VALUE_CHARACTERS:
            raise RequestError(
                f"metadata.{key:.80}: expected at most {KEY_CHARACTERS} characters in a key and {VALUE_CHARACTERS} in "
                f"a value, got {len(key)} and {len(value)}",
                "invalid_value",
                "metadata",
            )
    return dict(metadata)


def batch_object(batch: Batch) -> dict[str, Any]:
    return {
        "id": batch.id,
        "object": "batch",
        "endpoint": batch.endpoint,
        "model": batch.model,
        "errors": None if batch.errors is None else {"object": "list", "data": batch.errors},
        "input_file_id": batch.input_file_id,
        "completion_window": batch.completion_window,
        "status": batch.status,
        "output_file_id": batch.output_file_id,
        "error_file_id": batch.error_file_id,
        "created_at": batch.created_at,
        "in_progress_at": batch.in_progress_at,
        "expires_at": batch.expires_at,
        "finalizing_at": batch.finalizing_at,
        "completed_at": batch.completed_at,
        "failed_at": batch.failed_at,
        "expired_at": batch.expired_at,
        "cancelling_at": batch.cancelling_at,
        "cancelled_at": batch.cancelled_at,
        "request_counts": {"total": batch.total, "completed": batch.completed, "failed": batch.failed},
        "usage": usage(batch),
        "metadata": batch.metadata,
        **({} if batch.mapping is None else {"mapping": batch.mapping}),
    }


def usage(batch: Batch) -> dict[str, Any] | None:
    """Once the batch has ended."""
    if not batch.ended:
        return None
    return {
        "input_tokens": batch.input_tokens,
        "input_tokens_details": {"cached_tokens": 0},
        "output_tokens": batch.output_tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": batch.input_tokens + batch.output_tokens,
    }
