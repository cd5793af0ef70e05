"""Routes described by what the protocols say of their bodies, for the server's own OpenAPI."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Required, get_args, get_origin, get_type_hints

from pydantic import TypeAdapter

from pybatch.api.vllm_names import ANYTHING
from pybatch.engine.sampling_params import SamplingParams

Schema = dict[str, Any]

ERROR: Schema = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}
"""OpenAI's."""

ANTHROPIC_ERROR: Schema = {
    "type": "object",
    "required": ["type", "error", "request_id"],
    "properties": {
        "type": {"const": "error"},
        "error": {
            "type": "object",
            "required": ["type", "message"],
            "properties": {"type": {"type": "string"}, "message": {"type": "string"}},
        },
        "request_id": {"type": "string"},
    },
}

REASONS = {
    400: "The request is not proper, or cannot be run: the message says why, and param which field is at fault.",
    401: "The key is missing or unknown.",
    404: "There is no such model or object.",
    413: "The body is too large.",
    429: "The key's limit is reached: try again after Retry-After seconds.",
    500: "The server has failed.",
    503: "Too many requests wait, or the server is about to end: try again after Retry-After seconds.",
}


def documented(
    body: Schema, *, answer: Schema, streams: bool = False, error: Schema = ERROR, example: Any = None
) -> dict[str, Any]:
    """Arguments for a route that takes JSON: its body, and its responses besides.

    answer: of the body of a 200. streams: which may be server-sent events instead. example: a body.
    """
    content: dict[str, Any] = {"application/json": {"schema": answer}}
    if streams:
        content["text/event-stream"] = {"schema": {"type": "string"}}
    taken: dict[str, Any] = {"schema": body}
    if example is not None:
        taken["example"] = example
    return {
        "openapi_extra": {"requestBody": {"required": True, "content": {"application/json": taken}}},
        "responses": {200: {"description": "The answer.", "content": content}, **errors(error)},
    }


def errors(schema: Schema = ERROR, of: Collection[int] = tuple(REASONS)) -> dict[int | str, dict[str, Any]]:
    """A route's responses that are errors."""
    return {
        status: {"description": REASONS[status], "content": {"application/json": {"schema": schema}}} for status in of
    }


def body_schema(
    *fields: type, sampling: Collection[str] = (), asking_nothing: Mapping[str, Collection[Any]] | None = None
) -> Schema:
    """The schema of an object.

    fields: TypedDicts with its fields. sampling: those that have the types that SamplingParams gives them, and may be
    null. asking_nothing: by name, the values that pass besides null, as for expect_fields.
    """
    properties: dict[str, Schema] = {}
    for name, values in sorted((asking_nothing or {}).items()):
        properties[name] = (
            {} if values is ANYTHING else {"enum": [*(each for each in values if each is not None), None]}
        )
    for name in sorted(sampling):
        properties[name] = schema_of(get_type_hints(SamplingParams)[name] | None)
    required = []
    for each in fields:
        for name, hint in get_type_hints(each, include_extras=True).items():
            is_required = get_origin(hint) is Required
            properties[name] = schema_of(get_args(hint)[0] if is_required else hint)
            required += [name] if is_required else []
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


def object_with(**fields: Any) -> Schema:
    """The schema of an object that has at least these fields, given with their types."""
    properties = {name: schema_of(kind) for name, kind in fields.items()}
    return {"type": "object", "properties": properties, "required": list(fields)}


def schema_of(kind: Any) -> Schema:
    """Of the values of a type."""
    return TypeAdapter(kind).json_schema()
