from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from openai.types import Completion
from openai.types.chat import ChatCompletion

from pybatch.api.inputs import Conversation
from pybatch.api.outcomes import Answer, Failure, Sample, joined
from pybatch.engine.standing import Standing
from pybatch.jobs.dialect import Dialect, request_of
from pybatch.jobs.dialects.openai_batch import CANCELLED, OpenAIBatch, spoils_batch
from pybatch.jobs.rows import Row

USER = [{"role": "user", "content": "Hello"}]
BODY = {"model": "gpt-4o-mini", "messages": USER, "max_tokens": 5}
ANSWER = Answer(3, (Sample("one", 2, "stop"),))
DIALECT = OpenAIBatch(1_700_000_000)


def row(index: int = 0, /, **changes: Any) -> Row:
    fields = {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": BODY, **changes}
    return Row(index, f"line {index + 1}", 1, {name: value for name, value in fields.items() if value is not None})


def completion(**body: Any) -> Row:
    return row(url="/v1/completions", body={"model": "m", "prompt": "Hello", **body})


URLS = "/v1/chat/completions or /v1/completions or /v1/embeddings"


def test_a_line_is_a_request() -> None:
    asked = DIALECT.request(row())
    assert (asked.prompts, asked.params, asked.id) == ((Conversation(USER),), {"max_tokens": 5}, "a")
    assert DIALECT.request(completion(user="ann", tpot_target=2)).standing == Standing(user="ann", tpot_target=2)
    assert DIALECT.request(completion(prompt=[1, 2])).prompts == ([1, 2],)
    assert DIALECT.request(completion(prompt=["a", "b"])).prompts == ("a", "b")
    assert DIALECT.request(completion(prompt=[[1], [2, 3]])).prompts == ([1], [2, 3])


@pytest.mark.parametrize(
    ("changes", "code", "says"),
    [
        ({"custom_id": None}, "missing_required_parameter", "custom_id: missing"),
        ({"custom_id": 3}, "invalid_type", "custom_id: expected text, got 3"),
        ({"method": None}, "missing_required_parameter", "method: missing"),
        ({"method": "GET"}, "invalid_method", "method: expected 'POST', got 'GET'"),
        (
            {"url": "/v1/images"},
            "invalid_url",
            "url: expected /v1/chat/completions or /v1/completions or /v1/embeddings",
        ),
        (
            {"url": ["x"]},
            "invalid_url",
            "url: expected /v1/chat/completions or /v1/completions or /v1/embeddings or /v1/score or /score or "
            "/v1/rerank or /rerank or /v2/rerank, got ['x']",
        ),
        ({"body": None}, "missing_required_parameter", "body: missing"),
        ({"body": "x"}, "invalid_type", "body: expected an object, got str"),
        ({"body": {**BODY, "model": None}}, "missing_required_parameter", "model: missing"),
        ({"body": {**BODY, "foo": 1}}, "unknown_parameter", "foo: unknown parameter"),
    ],
)
def test_a_line_that_is_no_request_is_refused(changes: dict[str, Any], code: str, says: str) -> None:
    failure = request_of(DIALECT, row(**changes))
    assert isinstance(failure, Failure)
    assert failure.code == code
    assert failure.message.startswith(says)


def test_all_rows_name_one_model() -> None:
    dialect = OpenAIBatch(0, model="gpt-4o-mini")
    dialect.request(row())
    failure = request_of(dialect, row(body={**BODY, "model": "gpt-4o"}))
    assert isinstance(failure, Failure)
    assert (failure.code, failure.message) == (
        "mismatched_model", "model: expected 'gpt-4o-mini' as in the first row, got 'gpt-4o'",
    )  # fmt: skip


def test_a_result_is_openais() -> None:
    line = DIALECT.result(row(), ANSWER)
    assert line.keys() == {"id", "custom_id", "response", "error"}
    assert line["id"].startswith("batch_req_")
    assert (line["custom_id"], line["error"]) == ("a", None)
    assert line["response"].keys() == {"status_code", "request_id", "body"}
    assert line["response"]["status_code"] == 200
    read = ChatCompletion.model_validate(line["response"]["body"], strict=True)
    assert read.model_dump(exclude_unset=True) == line["response"]["body"]
    assert (read.model, read.created, read.choices[0].message.content) == ("gpt-4o-mini", 1_700_000_000, "one")
    completed = DIALECT.result(completion(echo=True), ANSWER)["response"]["body"]
    assert Completion.model_validate(completed, strict=True).choices[0].text == "Helloone"


def test_a_rows_result_is_the_same_whenever_it_is_written_and_has_ids_of_its_own() -> None:
    assert DIALECT.result(row(), ANSWER) == DIALECT.result(row(), ANSWER)
    ids = {DIALECT.result(each, ANSWER)["id"] for each in (row(), row(1), row(custom_id="b"))}
    assert len(ids) == 3


def test_several_prompts_have_their_choices_one_after_the_other() -> None:
    answers = [Answer(3, (Sample(f"{name}1", 2, "stop"), Sample(f"{name}2", 4, "length"))) for name in "xy"]
    result = DIALECT.result(completion(prompt=["Hi", "Ho"], n=2, echo=True), joined(answers))["response"]["body"]
    read = Completion.model_validate(result, strict=True)
    assert [(choice.index, choice.text) for choice in read.choices] == [
        (0, "Hix1"),
        (1, "Hix2"),
        (2, "Hoy1"),
        (3, "Hoy2"),
    ]
    assert read.usage is not None
    assert (read.usage.prompt_tokens, read.usage.completion_tokens, read.usage.total_tokens) == (6, 12, 18)


def test_a_refused_request_has_the_response_of_http_and_no_error() -> None:
    line = DIALECT.result(row(6), Failure("max_tokens: no", "invalid_value", "max_tokens"))
    assert line["error"] is None
    assert line["response"]["status_code"] == 400
    assert line["response"]["body"] == {
        "error": {
            "message": "line 7: max_tokens: no",
            "type": "invalid_request_error",
            "param": "max_tokens",
            "code": "invalid_value",
        }
    }
    assert DIALECT.result(row(), Failure("x", "server_error"))["response"]["status_code"] == 500


def test_a_line_that_never_was_a_request_has_an_error_alone() -> None:
    bad = replace(row(2), fields={"line": "{"}, error="not valid JSON: x")
    failure = request_of(DIALECT, bad)
    assert isinstance(failure, Failure)
    line = DIALECT.result(bad, failure)
    assert line == {
        "id": line["id"],
        "custom_id": None,
        "response": None,
        "error": {"code": "invalid_json_line", "message": "line 3: not valid JSON: x"},
    }
    assert DIALECT.result(row(), Failure("x", "duplicate_custom_id"))["response"] is None


def test_failures_are_written_apart() -> None:
    dialect: Dialect = DIALECT
    assert dialect.apart


@pytest.mark.parametrize(("body", "says"), [({"prompt": [1]}, "for token ids"), ({"logprobs": 1}, "with logprobs")])
def test_an_echo_that_takes_the_tokenizer_to_write_is_refused(body: dict[str, Any], says: str) -> None:
    failure = request_of(DIALECT, completion(echo=True, **body))
    assert isinstance(failure, Failure)
    assert (failure.code, failure.param) == ("unsupported_parameter", "echo")
    assert says in failure.message


def test_an_echo_of_text_comes_before_the_answer() -> None:
    line = completion(prompt=["a"], echo=True, max_tokens=0)
    assert DIALECT.request(line).params == {"max_tokens": 1}
    (choice,) = DIALECT.result(line, Answer(1, (Sample("b", 1, "length"),)))["response"]["body"]["choices"]
    assert choice["text"] == "a"


def test_a_batch_has_an_endpoint_and_a_server_s_models() -> None:
    dialect = OpenAIBatch(0, url="/v1/chat/completions", served=("gpt-4o-mini", "other"))
    assert dialect.request(row()).id == "a"
    for bad, code, says in (
        (completion(), "invalid_url", "url: expected '/v1/chat/completions', the batch's endpoint"),
        (row(body={**BODY, "model": "x"}), "model_not_found", "model: expected 'gpt-4o-mini' or 'other', got 'x'"),
    ):
        failure = request_of(dialect, bad)
        assert isinstance(failure, Failure)
        assert failure.code == code
        assert failure.message.startswith(says)
        assert spoils_batch(failure)
    refused = request_of(dialect, row(body={**BODY, "max_tokens": 0}))
    assert isinstance(refused, Failure)
    assert not spoils_batch(refused)


def test_a_row_that_its_batch_ended_without_has_no_response() -> None:
    result = DIALECT.result(row(), Failure("not run", CANCELLED))
    assert (result["response"], result["error"]) == (None, {"code": "batch_cancelled", "message": "line 1: not run"})


def test_a_call_that_is_forced_is_read_without_the_model_s_template() -> None:
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
    called = row(body={**BODY, "tools": tools, "tool_choice": "required"})
    asked = DIALECT.request(called)
    assert asked.params["structured_outputs"]["grammar"].startswith("start: call")
    text = '{"name": "f", "arguments": {"a": 1}}'
    result = DIALECT.result(called, Answer(3, (Sample(text, 2, "stop"),)))["response"]["body"]
    (choice,) = ChatCompletion.model_validate(result, strict=True).choices
    assert choice.finish_reason == "tool_calls"
    assert choice.message.tool_calls[0].function.arguments == '{"a": 1}'  # type: ignore[index, union-attr]
    chosen = row(body={**BODY, "tools": tools})
    assert "structured_outputs" not in DIALECT.request(chosen).params
    body = DIALECT.result(chosen, Answer(3, (Sample(text, 2, "stop"),)))["response"]["body"]
    assert body["choices"][0]["message"]["content"] == text
