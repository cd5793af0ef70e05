from __future__ import annotations

from pybatch.api.protocols.anthropic_requests import ASKING_NOTHING, MessageFields
from pybatch.api.protocols.openai_requests import CHAT, CHAT_ASKING_NOTHING, SAMPLING, ChatFields, StreamFields
from pybatch.serve.openapi import body_schema


def test_a_body_s_schema_has_the_fields_that_the_protocol_takes_and_their_types() -> None:
    schema = body_schema(ChatFields, StreamFields, sampling=SAMPLING, asking_nothing=CHAT_ASKING_NOTHING)
    assert schema["properties"].keys() == CHAT | CHAT_ASKING_NOTHING.keys() | StreamFields.__annotations__.keys()
    assert sorted(schema["required"]) == ["messages", "model"]
    assert schema["additionalProperties"] is False
    properties = schema["properties"]
    assert properties["model"] == {"type": "string"}
    assert properties["n"] == {"anyOf": [{"type": "integer"}, {"type": "null"}]}
    assert properties["early_stopping"]["anyOf"] == [
        {"type": "boolean"}, {"const": "never", "type": "string"}, {"type": "null"}
    ]  # fmt: skip
    assert properties["skip_reading_prefix_cache"] == {"enum": [False, None]}
    assert properties["user"] == {}
    assert properties["stream"] == {"anyOf": [{"type": "boolean"}, {"type": "null"}]}


def test_fields_of_a_type_that_another_extends_are_there_too() -> None:
    schema = body_schema(MessageFields, asking_nothing=ASKING_NOTHING)
    assert sorted(schema["required"]) == ["max_tokens", "messages", "model"]
    assert schema["properties"]["thinking"] == {"enum": [{"type": "disabled"}, None]}
