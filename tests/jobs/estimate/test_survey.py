from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from pybatch import LLM, SamplingParams
from pybatch.jobs.check import Checked
from pybatch.jobs.dialects.anthropic_batch import AnthropicBatch
from pybatch.jobs.dialects.openai_batch import OpenAIBatch
from pybatch.jobs.dialects.plain import PlainDialect
from pybatch.jobs.estimate import survey
from pybatch.jobs.estimate.survey import Survey
from pybatch.jobs.rows import Row

CONTEXT = 512


@pytest.fixture(scope="module")
def llm(tiny_model: Path) -> LLM:
    return LLM(tiny_model, num_kv_blocks=128, max_num_seqs=4, threads=1)


def rows(fields: list[dict[str, Any]]) -> Iterator[Row]:
    return (Row(i, f"line {i + 1}", 10, each) for i, each in enumerate(fields))


def survey_of(llm: LLM, fields: list[dict[str, Any]], **params: Any) -> Survey:
    made = Survey(llm.session, PlainDialect(), SamplingParams(**{"max_tokens": 8, **params}), Checked())
    made.read(rows(fields))
    assert llm.session.idle
    assert not llm.engine.has_unfinished()
    return made


def test_prompt_tokens_are_exact_and_prompts_are_as_the_model_sees_them(llm: LLM) -> None:
    texts = [f"Say {i} {'x' * (i % 7)}" for i in range(600)]
    made = survey_of(llm, [{"prompt": text} for text in texts])
    tokenizer = llm.get_tokenizer()
    chats = [f"<|role|>user: {text}<|end|><|role|>assistant: " for text in texts]
    assert made.prompts == chats[:3]
    counts = [len(tokenizer.encode(chat, add_special_tokens=False)) for chat in chats]
    assert (made.rows, made.prompt_tokens, made.longest_prompt) == (600, sum(counts), max(counts))
    assert [len(row.token_ids) for row in made.sample] == counts


def test_rows_that_will_fail_are_counted_by_kind_with_the_first_messages(llm: LLM) -> None:
    made = survey_of(
        llm,
        [
            {"prompt": "fine"},
            *([{"no": "prompt"}] * 5),
            {"prompt": "x" * 2 * CONTEXT},
            {"prompt": "fine", "temperature": -1},
            {"prompt": "fine", "stop_token_ids": [10**6]},
        ],
    )
    assert (made.rows, made.failed) == (9, 8)
    assert made.errors["context_length_exceeded"].rows == 1
    missing = made.errors["missing_required_parameter"]
    assert missing.rows == 5
    assert missing.first == [f"line {i}: the row has neither 'prompt' nor 'messages', but 'no'" for i in (2, 3, 4)]
    messages = [message for kind in made.errors.values() for message in kind.first]
    for place, words in ((7, "fit"), (8, "temperature"), (9, "vocabulary")):
        assert any(message.startswith(f"line {place}: ") and words in message for message in messages)


def test_each_prompt_of_a_row_is_counted_and_one_that_is_refused_is_its_rows_error(llm: LLM) -> None:
    asks = {"method": "POST", "url": "/v1/completions"}
    prompts = (["Say it", "Say"], ["Say", "x" * 2 * CONTEXT], ["Say it"])
    made = Survey(llm.session, OpenAIBatch(0), SamplingParams(max_tokens=8, temperature=0), Checked())
    made.read(
        rows([{**asks, "custom_id": str(i), "body": {"model": "m", "prompt": each}} for i, each in enumerate(prompts)])
    )
    lengths = [len(llm.get_tokenizer().encode(text)) for text in ("Say it", "Say", "Say it")]
    assert (made.rows, made.failed, made.prompt_tokens) == (3, 1, sum(lengths))
    assert (made.repeated, made.limits.total()) == (1, 2)
    assert made.errors["context_length_exceeded"].first[0].startswith("line 2: prompt[1]: ")


def test_a_row_whose_id_was_used_before_will_fail(llm: LLM) -> None:
    made = Survey(llm.session, AnthropicBatch(), SamplingParams(), Checked(repeated={"a": (0, "line 1")}))
    body = {"model": "m", "max_tokens": 4, "messages": [{"role": "user", "content": "Say it"}]}
    made.read(rows([{"custom_id": "a", "params": body}] * 2))
    assert (made.rows, len(made.sample)) == (2, 1)
    assert made.errors["duplicate_custom_id"].first == ['line 2: custom_id "a" was used in line 1']


def test_rows_that_repeat_others_are_not_run(llm: LLM) -> None:
    same, other = {"prompt": "Say it"}, {"prompt": "Say it", "max_tokens": 4}
    made = survey_of(llm, [same, other, same, same], temperature=0)
    assert (made.repeated, made.repeated_tokens) == (2, made.prompt_tokens // 2)
    assert (made.limits, [row.index for row in made.sample]) == ({8: 1, 4: 1}, [0, 1])
    assert survey_of(llm, [same] * 3, seed=1).repeated == 2
    assert survey_of(llm, [same] * 3).repeated == 0  # they are drawn each by its own number


def test_limits_are_the_rows_own_and_never_beyond_the_context(llm: LLM) -> None:
    prompt = {"prompt": "abc"}
    length = len(survey_of(llm, [prompt]).sample[0].token_ids)
    made = survey_of(llm, [prompt, {**prompt, "max_tokens": 3}, {**prompt, "max_tokens": 10**6}, {**prompt, "n": 2}])
    assert made.limits == {8: 3, 3: 1, CONTEXT - length: 1}
    assert made.most_output_tokens == 8 + 3 + (CONTEXT - length) + 2 * 8
    assert survey_of(llm, [prompt], max_tokens=None).limits == {CONTEXT - length: 1}


def test_a_prompt_that_will_be_truncated_counts_as_what_is_left(llm: LLM) -> None:
    made = survey_of(llm, [{"prompt": "x" * 600}], truncate_prompt_tokens=20)
    assert (made.prompt_tokens, made.limits) == (20, {8: 1})
    assert survey_of(llm, [{"prompt": "x" * 600}], truncate_prompt_tokens=-1).prompt_tokens == CONTEXT - 1


def test_shared_prefixes(llm: LLM, tiny_model: Path) -> None:
    fields = [{"prompt": "p" * 100 + str(i)} for i in range(5)]
    shared = survey_of(llm, fields).shared_tokens
    assert shared == 4 * (len("<|role|>user: ") - 7 + 100)
    other = LLM(tiny_model, num_kv_blocks=64, threads=1, enable_prefix_caching=False)
    assert survey_of(other, fields).shared_tokens == 0


@pytest.mark.parametrize("count", [1, 100, 2000])
def test_the_sample_is_bounded_and_spread_over_the_job(llm: LLM, monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    monkeypatch.setattr(survey, "MOST_ROWS", 512)
    made = survey_of(llm, [{"prompt": str(i)} for i in range(count)])
    indexes = [row.index for row in made.sample]
    assert indexes == sorted(indexes)
    assert min(count, 256) <= len(indexes) <= 512
    if count == 2000:
        assert max(indexes) > 1600
        neighbours = sum(b - a == 1 for a, b in pairwise(indexes))
        assert neighbours > 0.9 * len(indexes)  # whole stretches


@pytest.mark.parametrize("length", [3, 400])
def test_the_sample_is_bounded_in_tokens(llm: LLM, monkeypatch: pytest.MonkeyPatch, length: int) -> None:
    monkeypatch.setattr(survey, "MOST_TOKENS", 300)
    made = survey_of(llm, [{"prompt": "x" * length} for _ in range(50)])
    assert made.sample
    assert sum(len(row.token_ids) for row in made.sample) <= max(300, length + 40)
