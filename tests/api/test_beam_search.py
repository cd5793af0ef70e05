"""LLM.beam_search, as scripts for vLLM call it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pybatch import LLM, BeamSearchParams, SamplingParams

PROMPTS = ["Hello there", {"prompt_token_ids": [5, 6, 7]}]


@pytest.fixture(scope="module")
def llm(tiny_model: Path) -> LLM:
    return LLM(tiny_model, num_kv_blocks=64, max_num_seqs=8, threads=1)


def test_sequences_are_the_beams_best_first(llm: LLM) -> None:
    outputs = llm.beam_search(PROMPTS, BeamSearchParams(beam_width=3, max_tokens=6, ignore_eos=True))
    searched = llm.generate(
        PROMPTS, SamplingParams(n=3, use_beam_search=True, max_tokens=6, ignore_eos=True, logprobs=0)
    )
    for output, same in zip(outputs, searched, strict=True):
        assert [each.cum_logprob for each in output.sequences] == [each.cumulative_logprob for each in same.outputs]
        assert sorted((each.cum_logprob for each in output.sequences), reverse=True) == [
            each.cum_logprob for each in output.sequences
        ]
        for sequence, answer in zip(output.sequences, same.outputs, strict=True):
            assert sequence.tokens == same.prompt_token_ids + answer.token_ids
            assert sequence.text == llm.get_tokenizer().decode(sequence.tokens, skip_special_tokens=False)
            assert sequence.logprobs == answer.logprobs
            assert (sequence.finish_reason, sequence.stop_reason) == ("length", None)
    assert outputs[0].sequences[0].text.startswith("Hello there")  # type: ignore[union-attr]


def test_the_end_token_is_left_out_unless_it_is_asked_for(llm: LLM) -> None:
    found: dict[bool, list[int]] = {}
    for keep in (False, True):
        params = BeamSearchParams(8, 12, length_penalty=-5.0, include_stop_str_in_output=keep)
        (output,) = llm.beam_search([22, 23], params)  # of which short answers end by themselves
        ended = [each for each in output.sequences if each.finish_reason == "stop"]
        assert ended
        found[keep] = ended[0].tokens
    assert found[True] == [*found[False], 0]
    assert 0 not in found[False]


def test_a_prompt_that_cannot_run_says_why(llm: LLM) -> None:
    good, bad, wide = [
        llm.beam_search([5, 6], BeamSearchParams(2, 3)),
        llm.beam_search([[5] * 600], BeamSearchParams(2, 3)),
        llm.beam_search([5, 6], BeamSearchParams(9, 3)),
    ]
    assert len(good[0].sequences) == 2
    assert (bad[0].sequences, wide[0].sequences) == ([], [])
    assert "600 tokens" in (bad[0].error or "")
    assert "9 beams are in a step together" in (wide[0].error or "")


@pytest.mark.parametrize(
    ("given", "error", "says"),
    [
        ({"beam_width": 0}, ValueError, "BeamSearchParams: beam_width: expected an integer of at least 1"),
        ({"max_tokens": 0}, ValueError, "BeamSearchParams: max_tokens: expected an integer of at least 1"),
        ({"length_penalty": "x"}, ValueError, "BeamSearchParams: length_penalty: expected a number"),
        ({"beam_widht": 2}, TypeError, "did you mean 'beam_width'?"),
    ],
)
def test_bad_parameters(given: dict[str, Any], error: type[Exception], says: str) -> None:
    with pytest.raises(error) as caught:
        BeamSearchParams(**{"beam_width": 2, "max_tokens": 3, **given})
    assert says in str(caught.value)
