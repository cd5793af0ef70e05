from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pybatch import LLM, SamplingParams
from pybatch.api.outcomes import Answer, Failure, Sample, outcome_of, positions
from pybatch.engine.outputs import Logprob


@pytest.fixture(scope="module")
def llm(tiny_model: Path) -> LLM:
    return LLM(tiny_model, num_kv_blocks=64, threads=1)


def test_an_answer_has_what_is_written_of_it(llm: LLM) -> None:
    params = SamplingParams(n=2, seed=1, max_tokens=3, ignore_eos=True, logprobs=1, prompt_logprobs=0)
    (output,) = llm.generate("Hi", params)
    answer = outcome_of(output, llm.get_tokenizer())
    assert isinstance(answer, Answer)
    assert (answer.prompt_tokens, answer.output_tokens) == (2, 6)
    for sample, completion in zip(answer.samples, output.outputs, strict=True):
        assert (sample.text, sample.tokens, sample.finish_reason) == (completion.text, 3, "length")
        assert sample.logprobs is not None
        assert [at[0]["token_id"] for at in sample.logprobs if at] == completion.token_ids
    assert answer.prompt_logprobs is not None
    assert answer.prompt_logprobs[0] is None
    assert answer.prompt_logprobs[1][0]["decoded_token"] == "i"  # type: ignore[index]


@pytest.mark.parametrize(
    ("prompt", "params", "code"),
    [
        ("x" * 600, SamplingParams(), "context_length_exceeded"),
        ([5] * 600, SamplingParams(), "context_length_exceeded"),
        ([], SamplingParams(), "invalid_request"),
        ([9999], SamplingParams(), "invalid_request"),
        ("x", SamplingParams(allowed_token_ids=[5], bad_words=["5"]), "server_error"),
    ],
)
def test_a_failure_says_why(llm: LLM, prompt: Any, params: SamplingParams, code: str) -> None:
    if params.bad_words:  # which leaves no token at all
        params = replace(params, bad_words=[llm.get_tokenizer().decode([5])])
    (output,) = llm.generate([prompt], params)
    outcome = outcome_of(output)
    assert isinstance(outcome, Failure)
    assert (outcome.message, outcome.code) == (output.error, code)


def test_an_answer_is_the_same_after_it_was_kept_as_json() -> None:
    sample = Sample("é\ud800", 3, "stop", "END", [[{"token_id": 5, "logprob": -0.5, "rank": 1, "decoded_token": "a"}]])
    answer = Answer(2, (sample, Sample("", 0, "length")), [None, []])
    assert Answer.from_json(answer.to_json()) == answer


def test_a_token_that_is_no_whole_character_has_its_bytes(llm: LLM) -> None:
    tokenizer = llm.get_tokenizer()
    half, _ = tokenizer.encode("é")
    (whole,) = tokenizer.encode("e")
    logprobs = [{token: Logprob(-0.5, 1, tokenizer.token_text(token))} for token in (half, whole)]
    assert positions([None, *logprobs], tokenizer) == [
        None,
        [{"token_id": half, "logprob": -0.5, "rank": 1, "decoded_token": "\ufffd", "bytes": [0xC3]}],
        [{"token_id": whole, "logprob": -0.5, "rank": 1, "decoded_token": "e"}],
    ]
    assert "bytes" not in positions(logprobs)[0][0]  # type: ignore[index]
