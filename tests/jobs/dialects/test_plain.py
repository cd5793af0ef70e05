from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from pybatch.api.inputs import Conversation
from pybatch.api.outcomes import Answer, Failure, Sample
from pybatch.engine.standing import Standing
from pybatch.jobs.dialect import Dialect, request_of
from pybatch.jobs.dialects.plain import PlainDialect
from pybatch.jobs.dialects.template import Template
from pybatch.jobs.rows import Row

USER = [{"role": "user", "content": "Hello"}]
ANSWER = Answer(prompt_tokens=3, samples=(Sample("one", 2, "stop"),))
TWO = Answer(3, (Sample("one", 2, "stop"), Sample("two", 4, "length")))


def row(index: int = 0, /, **fields: Any) -> Row:
    return Row(index, f"line {index + 1}", 1, fields)


def prompt(dialect: PlainDialect, **fields: Any) -> Any:
    (prompt,) = dialect.request(row(**fields)).prompts
    return prompt


def test_text_is_a_users_message_or_the_whole_prompt() -> None:
    assert prompt(PlainDialect(), prompt="Hello") == Conversation(USER)
    assert prompt(PlainDialect(chat=False), prompt="Hello") == "Hello"
    assert prompt(PlainDialect(Template("Hel{x}"), chat=False), x="lo", prompt="not this", messages=[]) == "Hello"


def test_messages_and_a_system_message() -> None:
    system = {"role": "system", "content": "Be brief."}
    assert prompt(PlainDialect(), messages=USER, prompt="not this") == Conversation(USER)
    assert prompt(PlainDialect(), messages=json.dumps(USER)) == Conversation(USER)  # a table's cell
    assert prompt(PlainDialect(), messages=None, prompt="Hello") == Conversation(USER)
    assert prompt(PlainDialect(system="Be brief."), messages=USER) == Conversation([system, *USER])
    assert prompt(PlainDialect(system="Be brief."), prompt="Hello") == Conversation([system, *USER])


def test_token_ids_are_a_whole_prompt() -> None:
    for fields in (
        {"prompt": [5, 6]},
        {"prompt_token_ids": [5, 6], "prompt": "not this"},
        {"prompt_token_ids": "[5, 6]"},
    ):
        assert prompt(PlainDialect(), **fields) == [5, 6]
    assert prompt(PlainDialect(), prompt_token_ids="", prompt="Hello") == Conversation(USER)  # a table's empty cell
    refused = request_of(PlainDialect(system="Be brief."), row(prompt=[5, 6]))
    assert isinstance(refused, Failure)
    assert refused.message == "prompt: no system message can stand in front of token ids"


@pytest.mark.parametrize(
    ("fields", "says", "code"),
    [
        ({"text": "x"}, "neither 'prompt' nor 'messages'", "missing_required_parameter"),
        ({"prompt;id": "a;1"}, "neither 'prompt' nor 'messages', but 'prompt;id'", "missing_required_parameter"),
        ({"prompt": ["x"]}, "prompt: expected text or a list of token ids, got ['x']", "invalid_type"),
        ({"prompt_token_ids": [1, -1]}, "prompt_token_ids: expected text or a list of token ids", "invalid_type"),
        (
            {"prompt": "a", "n": "12 apples"},
            "got '12 apples'; a row's field of this name is a sampling",
            "invalid_value",
        ),
        ({"prompt": None}, "prompt: expected text, got null", "missing_required_parameter"),
        ({"prompt": 3}, "prompt: expected text, got int", "invalid_type"),
        ({"prompt": "a\ud800b"}, "prompt: expected Unicode text, got the unpaired surrogate '.ud800'", "invalid_value"),
        ({"messages": "x"}, "messages: expected a list, got str", "invalid_type"),
        ({"prompt": "x", "temperature": -1}, "temperature: expected a number of at least 0, got -1", "invalid_value"),
    ],
)
def test_a_row_that_asks_for_nothing_proper_is_refused(fields: dict[str, Any], says: str, code: str) -> None:
    failure = request_of(PlainDialect(), row(**fields))
    assert isinstance(failure, Failure)
    assert says.replace(".ud800", "\\ud800") in failure.message
    assert failure.code == code


def test_a_line_that_could_not_be_read_is_refused() -> None:
    bad = replace(row(line="{"), error="not valid JSON: x")
    assert request_of(PlainDialect(), bad) == Failure("not valid JSON: x", "invalid_json_line")


def test_nesting_too_deep_is_the_rows_failure() -> None:
    nested: Any = "x"
    for _ in range(100_000):
        nested = [nested]
    for fields in ({"messages": [{"role": "user", "content": nested}]}, {"prompt": "a", "stop": nested}):
        assert isinstance(request_of(PlainDialect(), row(**fields)), Failure)
    assert isinstance(request_of(PlainDialect(Template("{x}")), row(x=nested)), Failure)


def test_a_row_sets_sampling_parameters_and_keeps_them() -> None:
    fields = {"prompt": "Hello", "max_tokens": 3, "sampling_params": {"seed": 7}, "mine": 1}
    asking = PlainDialect().request(row(**fields))
    assert asking.params == {"max_tokens": 3, "seed": 7}
    assert PlainDialect().result(row(**fields), ANSWER) == {
        **fields,
        "row": 0,
        "response": "one",
        "finish_reason": "stop",
        "usage": {"prompt_tokens": 3, "completion_tokens": 2},
    }


def test_a_row_says_when_it_runs() -> None:
    def standing(**fields: Any) -> Standing:
        return PlainDialect().request(row(prompt="Hello", **fields)).standing

    assert standing(user="ann", ttft_target=0.5) == standing(user="ann", ttft_target="0.5")
    assert standing(user="ann", ttft_target=0.5) == Standing(user="ann", ttft_target=0.5)
    assert standing(tpot_target="0.05") == Standing(tpot_target=0.05)
    assert standing(user=7, ttft_target="", priority="high") == Standing()  # the row's own data
    failure = request_of(PlainDialect(), row(prompt="Hello", ttft_target="soon"))
    assert isinstance(failure, Failure)
    assert (failure.code, failure.param) == ("invalid_value", "ttft_target")


def test_a_custom_id_is_the_rows_alone_and_other_ids_are_data() -> None:
    assert PlainDialect().request(row(prompt="a", custom_id="x")).id == "x"
    assert PlainDialect().request(row(prompt="a", custom_id=3, id="x")).id is None


def test_the_rows_fields_come_first_and_are_all_kept() -> None:
    dialect: Dialect = PlainDialect()
    result = dialect.result(row(4, id="a", prompt="p", nested={"k": [1, None]}), ANSWER)
    assert list(result) == ["id", "prompt", "nested", "row", "response", "finish_reason", "usage"]
    assert result["row"] == 4
    assert result["nested"] == {"k": [1, None]}
    assert not dialect.apart


def test_the_result_alone() -> None:
    assert list(PlainDialect().result(row(prompt="p"), ANSWER, fields=False)) == [
        "row", "response", "finish_reason", "usage",
    ]  # fmt: skip
    assert PlainDialect().result(row(6, prompt="p"), Failure("no", "x"), fields=False) == {
        "row": 6,
        "error": "line 7: no",
    }


def test_several_samples_are_lists_and_counted_together() -> None:
    result = PlainDialect().result(row(), TWO)
    assert result["response"] == ["one", "two"]
    assert result["finish_reason"] == ["stop", "length"]
    assert result["usage"] == {"prompt_tokens": 3, "completion_tokens": 6}


def test_log_probabilities() -> None:
    first = [[{"token_id": 5, "logprob": -0.5, "rank": 1, "decoded_token": "a"}]]
    sample = replace(ANSWER.samples[0], logprobs=first)
    one = PlainDialect().result(row(), Answer(3, (sample,), prompt_logprobs=[None, *first]))
    assert one["logprobs"] == first
    assert one["prompt_logprobs"] == [None, *first]
    assert PlainDialect().result(row(), Answer(3, (sample, sample)))["logprobs"] == [first, first]


def test_results_can_be_the_input_of_the_next_job() -> None:
    dialect = PlainDialect()
    first = dialect.result(row(prompt="p"), replace(ANSWER, samples=(Sample("one", 2, "stop", logprobs=[]),)))
    second = dialect.result(row(7, **first), TWO)
    third = dialect.result(row(8, **second), Failure("no"))
    assert dialect.request(row(**first)).params == {}  # not what was reported under a parameter's name
    assert second["input_row"] == 0
    assert second["input_response"] == "one"
    assert second["response"] == ["one", "two"]
    assert third["input_input_response"] == ["one", "two"]
    assert third["input_response"] == "one"
    assert third["error"] == "line 9: no"
    assert "response" not in third
