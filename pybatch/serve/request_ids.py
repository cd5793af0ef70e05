"""Every request has an id, which its response tells in a header, so that a client's report can be found in the log."""

from __future__ import annotations

import re
import uuid

from starlette.types import Scope

GOOD_ID = re.compile(rb"[\w.:/+=@-]{1,128}")


def is_anthropic(path: str) -> bool:
    """Whether the path is one of Anthropic's API."""
    return path == "/v1/messages" or path.startswith("/v1/messages/")


def request_id(scope: Scope) -> str:
    """The one that the client gave as x-request-id, or one made when it is first asked for."""
    state: dict[str, str] = scope.setdefault("state", {})
    if "request_id" not in state:
        given = next((value for name, value in scope["headers"] if name == b"x-request-id"), b"")
        state["request_id"] = given.decode() if GOOD_ID.fullmatch(given) else f"req_{uuid.uuid4().hex}"
    return state["request_id"]


def id_header(scope: Scope) -> tuple[str, str]:
    return ("request-id" if is_anthropic(scope["path"]) else "x-request-id"), request_id(scope)
