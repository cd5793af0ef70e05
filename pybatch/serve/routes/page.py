"""The live page: files that hold no data, which a script fills from the server's other routes."""

from __future__ import annotations

import hashlib
from importlib.resources import files

from fastapi import APIRouter, Request, Response

from pybatch.serve.errors import NotFoundError

router = APIRouter(include_in_schema=False)

TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
HEADERS = {
    # Scripts and styles of this server alone, none within the page, and no markup made of text.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; form-action 'none'; base-uri 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-cache",  # asked for again, by its ETag
}
PAGE = {
    each.name: (each.read_bytes(), TYPES[each.name[each.name.rindex(".") :]])
    for each in files("pybatch.serve").joinpath("page").iterdir()
}


@router.get("/")
async def page(request: Request) -> Response:
    return answer(request, "index.html")


@router.get("/page/{name}")
async def file_of_page(request: Request, name: str) -> Response:
    if name not in PAGE:
        raise NotFoundError(f"GET {request.url.path}: Not Found", "not_found")
    return answer(request, name)


def answer(request: Request, name: str) -> Response:
    content, media_type = PAGE[name]
    headers = {**HEADERS, "ETag": f'"{hashlib.sha256(content).hexdigest()[:16]}"'}
    if request.headers.get("If-None-Match") == headers["ETag"]:
        return Response(status_code=304, headers=headers)
    return Response(content, media_type=media_type, headers=headers)
