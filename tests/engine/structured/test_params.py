"""Which constraints are taken, and what is said of those that are not."""

from __future__ import annotations

import copy
import json
import pickle
from typing import Any

import pytest
from pydantic import BaseModel

from pybatch import SamplingParams, StructuredOutputsParams


class Answer(BaseModel):
    name: str
    size: int


def test_a_schema_comes_as_a_dict_as_text_or_as_a_class() -> None:
    schema = Answer.model_json_schema()
    given: list[Any] = [schema, json.dumps(schema), Answer]
    assert [json.loads(StructuredOutputsParams(json=each).json) for each in given] == [schema] * 3
    text = '{ "type":"string" }'
    assert StructuredOutputsParams(json=text).json == text, "as it was written"


def test_equal_constraints_are_the_same_key_and_can_be_copied() -> None:
    params = StructuredOutputsParams(choice=["a", "b"])
    assert params == StructuredOutputsParams(choice=("a", "b"))
    assert hash(params) == hash(StructuredOutputsParams(choice=["a", "b"]))
    assert copy.deepcopy(params) == pickle.loads(pickle.dumps(params)) == params
    assert SamplingParams(structured_outputs={"choice": ["a", "b"]}).structured_outputs == params
    assert SamplingParams(structured_outputs=params).clone() == SamplingParams(structured_outputs=params)


def test_objects_are_closed_on_request_where_they_say_nothing() -> None:
    inner = {"type": "object", "properties": {"b": {}}, "additionalProperties": True}
    schema = {"properties": {"a": inner}, "anyOf": [{"properties": {}}]}
    closed = json.loads(StructuredOutputsParams(json=schema, disable_additional_properties=True).json)
    assert closed["additionalProperties"] is False
    assert closed["anyOf"][0]["additionalProperties"] is False
    assert closed["properties"]["a"] == inner


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({}, "expected exactly one of json, regex, choice, grammar, json_object, got none"),
        ({"json_object": False}, "expected exactly one of .*, got none"),
        ({"json": {}, "regex": "a"}, "expected exactly one of .*, got json and regex"),
        ({"regex": ""}, "regex: expected a text that is not empty, got ''"),
        ({"regex": 3}, "regex: expected a text"),
        ({"regex": "\ud800"}, "regex: expected Unicode text"),
        ({"grammar": "x" * (2**20 + 1)}, "grammar: expected at most 1,048,576 characters, got 1,048,577"),
        ({"choice": []}, "choice: expected a list of at least one text"),
        ({"choice": "abc"}, "choice: expected a list"),
        ({"choice": ["a", 1]}, "choice: expected a text"),
        ({"choice": ["a" * 2**19] * 3}, "choice: expected at most 1,048,576 characters in all"),
        ({"json": "{"}, "json: expected a JSON schema"),
        ({"json": "3"}, "json: expected a JSON schema"),
        ({"json": {"a": {1, 2}}}, "json: expected a JSON schema"),
        ({"json": {"a": float("nan")}}, "json: expected a JSON schema"),
        ({"json": "[" * 100_000}, "json: the schema is nested too deeply"),
        ({"json_object": "yes"}, "json_object: expected True or False"),
        ({"json": {}, "disable_any_whitespace": 1}, "disable_any_whitespace: expected True or False"),
    ],
)
def test_bad_constraints_are_refused(fields: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=f"^structured_outputs: {says}"):
        StructuredOutputsParams(**fields)


def test_other_arguments_are_refused() -> None:
    with pytest.raises(TypeError, match="unknown argument 'regexp'; did you mean 'regex'"):
        StructuredOutputsParams(regexp="a")  # type: ignore[call-arg]
    with pytest.raises(TypeError, match=r"structural_tag = .*: known in vLLM, not here"):
        StructuredOutputsParams(structural_tag="{}")  # type: ignore[call-arg]
    with pytest.raises(ValueError, match="structured_outputs: expected StructuredOutputsParams or a dict"):
        SamplingParams(structured_outputs="a")  # type: ignore[arg-type]
    assert SamplingParams(structured_outputs={"regex": "a"}, use_beam_search=True, n=2).structured_outputs is not None
