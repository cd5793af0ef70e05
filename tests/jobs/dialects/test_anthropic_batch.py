from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from anthropic.types.messages import MessageBatchIndividualResponse

from pybatch.api.inputs import Conversation
from pybatch.api.outcomes import Answer, Failure, Outcome, Sample
from pybatch.engine.standing import Standing
from pybatch.jobs.dialect import Dialect, request_of
from pybatch.jobs.dialects.anthropic_batch import AnthropicBatch
from pybatch.jobs.dialects.openai_batch import CANCELLED, EXPIRED
from pybatch.jobs.rows import Row

USER = [{"role": "user", "content": "Hello"}]
PARAMS = {"model": "claude", "max_tokens": 5, "messages": USER}
ANSWER = Answer(3, (Sample("one", 2, "stop"),))
DIALECT: Dialect = AnthropicBatch()


def row(**changes: Any) -> Row:
    fields = {"custom_id": "a", "params": PARAMS, **changes}
    return Row(6, "line 7", 1, {name: value for name, value in fields.items() if value is not None})


def test_a_line_is_a_request() -> None:
    asked = DIALECT.request(row())
    assert (asked.prompts, asked.params, asked.id) == ((Conversation(USER),), {"n": 1, "max_tokens": 5}, "a")
    assert DIALECT.request(row(params={**PARAMS, "metadata": {"user_id": "ann"}})).standing == Standing(user="ann")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"custom_id": None}, "custom_id: missing"),
        ({"params": None}, "params: missing"),
        ({"params": [1]}, "params: expected an object, got [1]"),
        ({"params": {**PARAMS, "model": None}}, "model: missing"),
        ({"params": {**PARAMS, "max_tokens": None}}, "max_tokens: missing"),
        ({"params": {**PARAMS, "stream": True}}, "stream: not supported in a batch; expected false"),
    ],
)
def test_a_line_that_is_no_request_is_refused(changes: dict[str, Any], says: str) -> None:
    failure = request_of(DIALECT, row(**changes))
    assert isinstance(failure, Failure)
    assert failure.message.startswith(says)


@pytest.mark.parametrize(
    ("each", "outcome", "custom_id", "kind"),
    [
        (row(), ANSWER, "a", "succeeded"),
        (row(), Failure("no", "invalid_value"), "a", "errored"),
        (replace(row(), fields={"line": "{"}, error="x"), Failure("x", "invalid_json_line"), "", "errored"),
    ],
)
def test_a_result_is_anthropics(each: Row, outcome: Outcome, custom_id: str, kind: str) -> None:
    line = DIALECT.result(each, outcome)
    read = MessageBatchIndividualResponse.model_validate(line, strict=True)
    assert read.model_dump(exclude_unset=True) == line
    assert (read.custom_id, read.result.type) == (custom_id, kind)
    if read.result.type == "succeeded":
        assert (read.result.message.model, read.result.message.content[0].type) == ("claude", "text")
    if read.result.type == "errored":
        assert read.result.error.error.message.startswith("line 7: ")


def test_failures_stay_among_the_results_which_are_always_the_same() -> None:
    assert not DIALECT.apart
    assert DIALECT.result(row(), ANSWER) == DIALECT.result(row(), ANSWER)


@pytest.mark.parametrize(("code", "type"), [(CANCELLED, "canceled"), (EXPIRED, "expired")])
def test_a_row_that_its_batch_ended_without_says_so(code: str, type: str) -> None:
    result = DIALECT.result(row(), Failure("not run", code))
    assert result == {"custom_id": "a", "result": {"type": type}}
    MessageBatchIndividualResponse.model_validate(result, strict=True)


def test_a_model_that_is_not_served_is_not_found() -> None:
    failure = request_of(AnthropicBatch(served=("tiny",)), row())
    assert isinstance(failure, Failure)
    assert (failure.code, failure.message) == ("model_not_found", "model: expected 'tiny', got 'claude'")


def test_a_call_that_is_forced_is_a_block() -> None:
    tools = [{"name": "f", "input_schema": {"type": "object"}}]
    called = row(params={**PARAMS, "tools": tools, "tool_choice": {"type": "tool", "name": "f"}})
    assert DIALECT.request(called).params["structured_outputs"]["grammar"].startswith("start: call")
    result = DIALECT.result(called, Answer(3, (Sample('{"name": "f", "arguments": {"a": 1}}', 2, "stop"),)))
    message = MessageBatchIndividualResponse.model_validate(result, strict=True).result.message  # type: ignore[union-attr]
    assert message.stop_reason == "tool_use"
    assert message.content[0].input == {"a": 1}  # type: ignore[union-attr]
