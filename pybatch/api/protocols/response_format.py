"""What a request's answer has to look like, in the words of OpenAI, Anthropic and vLLM."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypedDict

from pybatch.api.protocols.fields import expect_type
from pybatch.api.protocols.request_error import RequestError

GUIDED = {"guided_json": "json", "guided_regex": "regex", "guided_choice": "choice", "guided_grammar": "grammar"}
"""vLLM's older names, each with that of StructuredOutputsParams."""


class StructureFields(TypedDict, total=False):
    """Of a body for chat completions or completions."""

    response_format: dict[str, Any] | None
    # vLLM's
    structured_outputs: dict[str, Any] | None
    guided_json: Any
    guided_regex: str | None
    guided_choice: list[str] | None
    guided_grammar: str | None


def structure(body: Mapping[str, Any]) -> dict[str, Any]:
    """The structured_outputs of SamplingParams, if the body has a constraint. Raises RequestError."""
    found: dict[str, dict[str, Any]] = {}
    if (given := body.get("response_format")) is not None:
        found["response_format"] = read_format("response_format", given)
    if (given := body.get("structured_outputs")) is not None:
        expect_type("structured_outputs", given, Mapping, "an object")
        found["structured_outputs"] = dict(given)
    for name, ours in GUIDED.items():
        if body.get(name) is not None:
            found[name] = {ours: body[name]}
    found = {name: constraint for name, constraint in found.items() if constraint}
    if len(found) > 1:
        first, second, *_ = found
        raise RequestError(f"{second}: expected none beside {first}", "invalid_value", second)
    constraint = next(iter(found.values()), None)
    return {} if constraint is None else {"structured_outputs": constraint}


def constraint_name(body: Mapping[str, Any]) -> str:
    """What a body that has a constraint calls it, OpenAI's or Anthropic's."""
    names = ("response_format", *GUIDED, "output_config", "output_format")
    return next((name for name in names if body.get(name) not in (None, {"type": "text"})), "structured_outputs")


def read_format(name: str, given: Any) -> dict[str, Any]:
    """A response_format of OpenAI's; empty for plain text."""
    kind = expect_type(name, given, Mapping, "an object").get("type")
    if kind == "text":
        return {}
    if kind == "json_object":
        return {"json_object": True}
    if kind != "json_schema":
        expected = "expected the type 'text', 'json_object' or 'json_schema'"
        raise RequestError(f"{name}: {expected}, got {kind!r:.80}", "invalid_value", name)
    where = f"{name}.json_schema"
    return {"json": read_schema(where, expect_type(where, given.get("json_schema"), Mapping, "an object"))}


def read_schema(name: str, holder: Mapping[str, Any]) -> Any:
    """The schema in an object that holds one beside its name."""
    schema = holder.get("schema")
    return expect_type(f"{name}.schema", schema, (Mapping, bool), "a JSON schema")


def output_structure(body: Mapping[str, Any]) -> dict[str, Any]:
    """As structure, of Anthropic's output_config, or of output_format, its older name. Raises RequestError."""
    config = body.get("output_config") or {}
    expect_type("output_config", config, Mapping, "an object")
    for name in config:
        if name not in ("format", "effort"):
            where = f"output_config.{name:.80}"
            raise RequestError(f"{where}: unknown parameter", "unknown_parameter", where)
    name, given = "output_config.format", config.get("format")
    if given is None:
        name, given = "output_format", body.get("output_format")
    if given is None:
        return {}
    kind = expect_type(name, given, Mapping, "an object").get("type")
    if kind != "json_schema":
        raise RequestError(f"{name}: expected the type 'json_schema', got {kind!r:.80}", "invalid_value", name)
    return {"structured_outputs": {"json": read_schema(name, given)}}
