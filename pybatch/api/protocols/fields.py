"""The fields of request bodies: which there are, which ask for nothing, and which are refused."""

from __future__ import annotations

import json
import reprlib
from collections.abc import Collection, Mapping
from typing import Any

from pybatch.api.protocols.request_error import RequestError
from pybatch.engine.arguments import nearest


def expect_fields(body: Any, known: Collection[str], asking_nothing: Mapping[str, Collection[Any]]) -> None:
    """Raises RequestError for a body that is no object, and for fields that are unknown or cannot be served.

    asking_nothing: by name, the values that change no answer, besides null; for any other the field is refused.
    """
    if not isinstance(body, Mapping):
        raise RequestError(f"body: expected an object, got {type(body).__name__}", "invalid_type", "body")
    for name, value in body.items():
        if name in known:
            continue
        if name not in asking_nothing:
            near = nearest(name, [*known, *asking_nothing])
            hint = f"; did you mean {near!r}?" if near else ""
            raise RequestError(f"{name:.80}: unknown parameter{hint}", "unknown_parameter", name[:80])
        if value is not None and value not in asking_nothing[name]:
            only = " or ".join(json.dumps(each) for each in (*asking_nothing[name], None))
            raise RequestError(
                f"{name}: not supported here; expected {only}, got {reprlib.repr(value)}", "unsupported_parameter", name
            )


def expect_given(body: Mapping[str, Any], name: str) -> Any:
    """The field's value. Raises RequestError if there is none."""
    if body.get(name) is None:
        raise RequestError(f"{name}: missing", "missing_required_parameter", name)
    return body[name]


def expect_type(name: str, value: Any, kind: type | tuple[type, ...], expected: str) -> Any:
    """The value. Raises RequestError if it is of another type; a boolean is no number here."""
    kinds = kind if isinstance(kind, tuple) else (kind,)
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        raise RequestError(f"{name}: expected {expected}, got {reprlib.repr(value)}", "invalid_type", name)
    return value


def flag(body: Mapping[str, Any], name: str) -> bool:
    """The value of a boolean field, False without one."""
    value = body.get(name)
    return False if value is None else bool(expect_type(name, value, bool, "true or false"))
