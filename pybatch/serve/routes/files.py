"""OpenAI's /v1/files: what batches read and write."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import FileResponse, Response

from pybatch.api.protocols.request_error import RequestError
from pybatch.api.protocols.sampling import integer
from pybatch.serve.errors import NotFoundError
from pybatch.serve.expiry import LONGEST, SHORTEST, seconds_of
from pybatch.serve.openapi import errors
from pybatch.serve.queries import cut
from pybatch.serve.service import Served, Service
from pybatch.serve.store import StoredFile
from pybatch.serve.uploads import receive

router = APIRouter()


FORM = {
    "type": "object",
    "required": ["file", "purpose"],
    "properties": {
        "file": {"type": "string", "format": "binary"},
        "purpose": {"const": "batch"},
        "expires_after[anchor]": {"const": "created_at"},
        "expires_after[seconds]": {"type": "integer", "minimum": SHORTEST, "maximum": LONGEST},
    },
}


@router.post(
    "/v1/files",
    openapi_extra={"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": FORM}}}},
    responses=errors(),
)
async def create_file(request: Request, service: Served) -> dict[str, Any]:
    files = service.storage.files
    upload = await asyncio.to_thread(files.upload)
    try:
        form = await receive(request, upload, "file")
        if form.filename is None:
            raise RequestError("file: missing", "missing_required_parameter", "file")
        purpose = form.fields.get("purpose")
        if purpose != "batch":
            raise RequestError(f"purpose: expected 'batch', got {purpose!r:.80}", "invalid_value", "purpose")
        file = await asyncio.to_thread(
            files.keep, upload, purpose=purpose, filename=form.filename, expires_after=expires_after(form.fields)
        )
    finally:
        await asyncio.to_thread(upload.close)
    return file_object(file)


def expires_after(fields: Mapping[str, str]) -> int | None:
    """A form has an object's fields one by one."""
    policy: dict[str, Any] = {
        name.removeprefix("expires_after[").removesuffix("]"): value
        for name, value in fields.items()
        if name.startswith("expires_after[")
    }
    if "seconds" in policy:
        policy["seconds"] = integer(policy["seconds"])
    return seconds_of("expires_after", policy or None)


@router.get("/v1/files", responses=errors())
async def list_files(request: Request, service: Served) -> dict[str, Any]:
    query = request.query_params
    asked = cut(query, default=10_000, most=10_000)
    page = await asyncio.to_thread(service.storage.files.page, asked, query.get("purpose"))
    return listed([file_object(file) for file in page.items], page.has_more)


@router.get("/v1/files/{id}", responses=errors())
async def retrieve_file(id: str, service: Served) -> dict[str, Any]:
    return file_object(await expect_file(service, id))


@router.get("/v1/files/{id}/content", response_class=FileResponse, responses=errors())
async def retrieve_file_content(id: str, service: Served) -> Response:
    file = await expect_file(service, id)
    return FileResponse(service.storage.files.path(file), media_type="application/octet-stream", filename=file.filename)


@router.delete("/v1/files/{id}", responses=errors())
async def delete_file(id: str, service: Served) -> dict[str, Any]:
    file = await expect_file(service, id)
    await asyncio.to_thread(service.storage.files.delete, file)
    return {"id": id, "object": "file", "deleted": True}


async def expect_file(service: Service, id: str) -> StoredFile:
    """Raises NotFoundError."""
    file = await asyncio.to_thread(service.storage.files.get, id)
    if file is None:
        raise NotFoundError(f"there is no file {id!r:.80}", "not_found", "id")
    return file


def file_object(file: StoredFile) -> dict[str, Any]:
    return {
        "id": file.id,
        "object": "file",
        "bytes": file.bytes,
        "created_at": file.created_at,
        "expires_at": file.expires_at,
        "filename": file.filename,
        "purpose": file.purpose,
        "status": "processed",
        "status_details": None,
    }


def listed(items: list[dict[str, Any]], has_more: bool) -> dict[str, Any]:
    """OpenAI's list of objects."""
    ends = {"first_id": items[0]["id"], "last_id": items[-1]["id"]} if items else {"first_id": None, "last_id": None}
    return {"object": "list", "data": items, **ends, "has_more": has_more}
