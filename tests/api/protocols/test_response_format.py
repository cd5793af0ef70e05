"""The constraint on an answer, whatever the API that asks for it."""

from __future__ import annotations

from typing import Any

import pytest

from pybatch.api.protocols.anthropic_requests import message_request
from pybatch.api.protocols.openai_requests import chat_request, completion_request
from pybatch.api.protocols.request_error import RequestError

SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}
HI = [{"role": "user", "content": "Hi"}]


@pytest.mark.parametrize(
    ("fields", "constraint"),
    [
        ({"response_format": {"type": "text"}}, None),
        ({"response_format": None, "structured_outputs": None, "guided_json": None}, None),
        ({"response_format": {"type": "json_object"}}, {"json_object": True}),
        (
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "x", "strict": True, "schema": SCHEMA},
                }
            },
            {"json": SCHEMA},
        ),
        ({"response_format": {"type": "text"}, "guided_regex": "a+"}, {"regex": "a+"}),
        ({"structured_outputs": {"choice": ["a", "b"]}}, {"choice": ["a", "b"]}),
        ({"guided_json": SCHEMA}, {"json": SCHEMA}),
        ({"guided_choice": ["a"]}, {"choice": ["a"]}),
        ({"guided_grammar": 'start: "a"'}, {"grammar": 'start: "a"'}),
    ],
)
def test_openais_and_vllms_words(fields: dict[str, Any], constraint: Any) -> None:
    for request in (
        chat_request({"model": "m", "messages": HI, **fields}),
        completion_request({"model": "m", "prompt": "Hi", **fields}),
    ):
        assert request.params.get("structured_outputs") == constraint


def test_anthropics_words() -> None:
    body = {"model": "m", "messages": HI, "max_tokens": 5}
    schema = {"type": "json_schema", "schema": SCHEMA}
    for fields in ({"output_config": {"format": schema, "effort": "low"}}, {"output_format": schema}):
        assert message_request({**body, **fields}).params["structured_outputs"] == {"json": SCHEMA}
    assert "structured_outputs" not in message_request({**body, "output_config": {}}).params
    for fields, says in (
        ({"output_format": {"type": "xml"}}, "output_format: expected the type 'json_schema', got 'xml'"),
        ({"output_config": {"format": {"type": "json_schema"}}}, "output_config.format.schema: expected a JSON schema"),
        ({"output_config": {"formt": 1}}, "output_config.formt: unknown parameter"),
    ):
        with pytest.raises(RequestError, match=says):
            message_request({**body, **fields})
