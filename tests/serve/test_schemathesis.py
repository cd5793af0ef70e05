"""Requests that schemathesis makes of the server's own OpenAPI."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from live_server import Server
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

NARROWER = {"model": {"const": "tiny"}, "max_tokens": {"type": "integer", "maximum": 4}, "n": {"enum": [1, 2, None]}}
"""Types of fields with which more than errors comes back, and soon."""


@pytest.fixture(scope="module")
def api(server: Server) -> Any:
    description = httpx.get(f"{server.url}/openapi.json").json()
    for methods in description["paths"].values():
        for operation in methods.values():
            content = operation.get("requestBody", {}).get("content", {})
            properties = content.get("application/json", {}).get("schema", {}).get("properties", {})
            for name, kind in list(properties.items()):
                properties[name] = NARROWER.get(name, kind)
                if not kind or kind.keys() == {"enum"} or "object" in str(kind.get("anyOf")):
                    del properties[name]  # anything at all, which takes long to make; bench/serve_fuzz.py has it
    schema = schemathesis.openapi.from_dict(description)
    schema.config.update(base_url=server.url)
    return schema


def test_every_answer_is_as_it_is_described(api: Any) -> None:
    operations = [found.ok() for found in api.get_all_operations() if found.ok().path != "/stats/stream"]  # endless
    assert len(operations) > 10
    for operation in operations:
        try_out(operation)


def try_out(operation: Any) -> None:
    checks = [not_a_server_error]
    if "400" in operation.definition.raw["responses"]:
        checks += [content_type_conformance, response_schema_conformance, status_code_conformance]

    @settings(max_examples=12, derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck))
    @given(operation.as_strategy())
    def answered(case: Any) -> None:
        case.validate_response(case.call(timeout=30), checks=checks)

    answered()
