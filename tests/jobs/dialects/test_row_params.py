from __future__ import annotations

import math
from typing import Any

import pytest

from pybatch import SamplingParams
from pybatch.api.protocols.request_error import RequestError
from pybatch.api.protocols.sampling import NAMES, merged
from pybatch.jobs.dialects.row_params import row_params

JOB = SamplingParams(temperature=0.5, max_tokens=10, stop=["x"])


def test_every_field_counts_at_the_top_and_other_names_are_data() -> None:
    assert "max_tokens" in NAMES
    row = {
        "n": 2, "temperature": 0, "top_p": 0.5, "top_k": 4, "min_p": 0.1, "seed": 7, "stop": ["a"], "min_tokens": 1,
        "stop_token_ids": [3], "ignore_eos": True, "max_tokens": 5, "logprobs": 2, "presence_penalty": 1,
        "frequency_penalty": 1, "repetition_penalty": 1.1, "allowed_token_ids": [1], "bad_words": ["b"],
        "truncate_prompt_tokens": 9, "include_stop_str_in_output": True, "skip_special_tokens": False,
        "prompt_logprobs": 1, "detokenize": True, "speculate": False, "kv_policy": {"type": "streaming_llm"},
        "structured_outputs": {"regex": "a"},
        "use_beam_search": False, "best_of": 2, "length_penalty": 0.5, "early_stopping": "never",
    }  # fmt: skip
    assert row.keys() == NAMES - {"logit_bias"}
    assert row_params({**row, "max_token": 3, "output_kind": "x", "prompt": "p"}) == row


def test_an_object_beside_the_data_takes_precedence() -> None:
    assert row_params({"max_tokens": 3, "sampling_params": {"max_tokens": 4, "top_k": 1}}) == {
        "max_tokens": 4,
        "top_k": 1,
    }
    assert row_params({"sampling_params": '{"seed": 1}'}) == {"seed": 1}  # a table's cell
    assert row_params({"sampling_params": {"skip_clone": True, "logits_processors": None, "seed": 2}}) == {"seed": 2}


def test_where_a_row_says_nothing_the_jobs_value_holds() -> None:
    empty = {"max_tokens": None, "seed": "", "temperature": math.nan, "sampling_params": None}
    assert row_params(empty) == {}
    assert merged(JOB, row_params(empty)) is JOB


def test_a_row_is_set_over_the_job() -> None:
    params = merged(JOB, row_params({"max_tokens": 3, "stop": "y"}))
    assert (params.max_tokens, params.stop, params.temperature) == (3, "y", 0.5)
    assert JOB.max_tokens == 10


def test_tables_and_json_write_some_values_in_other_types() -> None:
    cells = {"max_tokens": "16", "temperature": "0.5", "ignore_eos": "true", "stop_token_ids": "[1, 2]", "stop": "7"}
    assert row_params(cells) == {
        "max_tokens": 16,
        "temperature": 0.5,
        "ignore_eos": True,
        "stop_token_ids": [1, 2],
        "stop": "7",
    }
    assert row_params({"max_tokens": 16.0}) == {"max_tokens": 16}
    assert type(row_params({"max_tokens": 16.0})["max_tokens"]) is int
    assert row_params({"logit_bias": {"42": -100}}) == {"logit_bias": {42: -100}}


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"max_tokens": 0}, "max_tokens: expected an integer of at least 1, got 0"),
        ({"max_tokens": "many"}, "max_tokens: expected an integer of at least 1, got 'many'"),
        ({"max_tokens": True}, "max_tokens: expected an integer"),
        ({"max_tokens": 1.5}, "max_tokens: expected an integer"),
        ({"temperature": [1]}, "temperature: expected a number"),
        ({"temperature": "1e999"}, "temperature: expected a number"),
        ({"seed": 2**70}, "seed: expected an integer"),
        ({"stop": ["a", 1]}, "stop: expected a string or a list of strings"),
        ({"logit_bias": {"a": 1}}, "logit_bias: expected a dict from token ids"),
        ({"min_tokens": 5, "max_tokens": 3}, "min_tokens: expected at most max_tokens = 3"),
        ({"sampling_params": {"top_k": -2}}, "top_k: expected an integer of at least -1"),
        ({"structured_outputs": {"regex": "a", "choice": ["b"]}}, "structured_outputs: expected exactly one of"),
        ({"structured_outputs": '{"jsn": {}}'}, "structured_outputs: unknown argument 'jsn'"),
    ],
)
def test_bad_values_are_refused(row: dict[str, Any], says: str) -> None:
    with pytest.raises(RequestError) as caught:
        row_params(row)
    assert str(caught.value).startswith(says)
    assert (caught.value.code, caught.value.param) == ("invalid_value", says.partition(":")[0])


@pytest.mark.parametrize(
    ("given", "says", "code"),
    [
        ([1], "expected an object, got list", "invalid_type"),
        ({"max_token": 1}, "unknown argument 'max_token'; did you mean 'max_tokens'", "unknown_parameter"),
        ({"output_kind": 1}, "unknown argument 'output_kind'", "unknown_parameter"),
        ({"stream_interval": 3}, "stream_interval = 3: known in vLLM, not here", "unknown_parameter"),
    ],
)
def test_unknown_names_are_refused(given: Any, says: str, code: str) -> None:
    with pytest.raises(RequestError) as caught:
        row_params({"sampling_params": given})
    assert str(caught.value).startswith(f"sampling_params: {says}")
    assert (caught.value.code, caught.value.param) == (code, "sampling_params")


def test_what_does_not_go_together_with_the_job_is_refused() -> None:
    given = row_params({"min_tokens": 20})
    with pytest.raises(RequestError, match="at most max_tokens = 10, got 20"):
        merged(JOB, given)
