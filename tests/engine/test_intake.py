"""What add_request takes, and what it refuses."""

from __future__ import annotations

import math
import random
from copy import copy
from dataclasses import replace
from typing import Any
from unittest.mock import Mock

import pytest
from engine.runs import MakeEngine, drain, run, some_prompt

from pybatch.engine import SamplingParams, intake
from pybatch.model import Decoder

GREEDY = SamplingParams(temperature=0, max_tokens=24, ignore_eos=True)

BAD_PARAMS: dict[str, tuple[dict[str, Any], str]] = {
    "max_tokens text": ({"max_tokens": "5"}, "max_tokens"),
    "max_tokens 0": ({"max_tokens": 0}, "max_tokens"),
    "n None": ({"n": None}, "n"),
    "n 0": ({"n": 0}, "n"),
    "n beyond all memory": ({"n": 10**9}, "n"),
    "temperature text": ({"temperature": "hot"}, "temperature"),
    "top_p none": ({"top_p": None}, "top_p"),
    "seed text": ({"seed": "x"}, "seed"),
    "stop a number": ({"stop": 5}, "stop"),
    "stop of numbers": ({"stop": ["a", 5]}, "stop"),
    "stop ids text": ({"stop_token_ids": "12"}, "stop_token_ids"),
    "stop ids beyond": ({"stop_token_ids": [2**70]}, "stop_token_ids"),
    "allowed beyond": ({"allowed_token_ids": [300]}, "allowed_token_ids"),
    "bias text": ({"logit_bias": {5: "x"}}, "logit_bias"),
    "bias beyond": ({"logit_bias": {300: 1.0}}, "logit_bias"),
    "repetition_penalty 1e-300": ({"repetition_penalty": 1e-300}, "repetition_penalty"),
    "repetition_penalty 1e300": ({"repetition_penalty": 1e300}, "repetition_penalty"),
    "logprobs text": ({"logprobs": "all"}, "logprobs"),
    "detokenize none": ({"detokenize": None}, "detokenize"),
    "output_kind": ({"output_kind": "delta"}, "output_kind"),
    "min above max": ({"min_tokens": 9}, "min_tokens"),
    "min above the default": ({"min_tokens": 2**70, "max_tokens": 16}, "min_tokens"),
}


@pytest.mark.parametrize(("fields", "name"), BAD_PARAMS.values(), ids=list(BAD_PARAMS))
def test_bad_parameters_are_refused_by_name_and_leave_nothing(
    make_engine: MakeEngine, fields: dict[str, Any], name: str
) -> None:
    engine = make_engine()
    params = SamplingParams(max_tokens=5)
    for field, value in fields.items():
        setattr(params, field, value)
    with pytest.raises(ValueError, match=f"{name}: "):
        engine.add_request("0", [1, 2], params)
    assert not engine.has_unfinished()
    assert engine.step() == []
    engine.add_request("0", [1, 2], GREEDY)
    assert len(list(drain(engine))) == 1


@pytest.mark.parametrize("params", [{"temperature": 0}, "greedy", None, object()])
def test_what_is_no_sampling_params_is_refused(make_engine: MakeEngine, params: Any) -> None:
    with pytest.raises(ValueError, match="sampling_params: expected SamplingParams, got "):
        make_engine().add_request("0", [1, 2], params)


@pytest.mark.parametrize("prompt", [None, 5, ["a"], [1.0], [math.nan], [2**70], [-1], [[1]], "ab"])
def test_what_is_no_prompt_is_refused(make_engine: MakeEngine, prompt: Any) -> None:
    with pytest.raises(ValueError, match="prompt: "):
        make_engine().add_request("0", prompt, GREEDY)


def test_random_bad_requests_leave_nothing(make_engine: MakeEngine) -> None:
    engine, draw = make_engine(max_num_seqs=2), random.Random(0)
    for i in range(300):
        params = SamplingParams(n=draw.choice((1, 5)), max_tokens=5)
        fields, _ = draw.choice(list(BAD_PARAMS.values()))
        for field, value in fields.items():
            setattr(params, field, value)
        prompt = draw.choice(([1, 2], some_prompt(50), [1, 9999], []))
        with pytest.raises(ValueError, match=": "):
            engine.add_request(str(i), prompt, params)
    assert engine.num_unfinished() == 0
    assert engine.step() == []
    engine.check_integrity()


def test_values_beyond_the_kernels_numbers_mean_the_nearest(make_engine: MakeEngine) -> None:
    """Beside a request that draws, so that every value goes to the kernels."""
    engine, prompt = make_engine(max_model_len=60), some_prompt(20)
    drawn = {"seed": 1, "max_tokens": 8, "ignore_eos": True}
    pairs: list[tuple[dict[str, Any], dict[str, Any]]] = [
        ({"top_p": 1e-50}, {"temperature": 0.0}),
        ({"top_p": 1e-300}, {"temperature": 0.0}),
        ({"top_k": 2**63}, {}),
        ({"top_k": 2**70}, {"top_k": -1}),
        ({"min_p": 1e-300}, {}),
        ({"max_tokens": 2**70}, {"max_tokens": None}),
        ({"min_tokens": 2**70, "max_tokens": None}, {"max_tokens": None}),
        ({"logprobs": 2**70}, {"logprobs": 300}),
        ({"prompt_logprobs": 2**70}, {"prompt_logprobs": -1}),
        ({"temperature": 1e300}, {"temperature": 3e38}),
        ({"presence_penalty": 1e-300}, {}),
    ]
    extreme, plain = ([SamplingParams(**{**drawn, **pair[i]}) for pair in pairs] for i in (0, 1))
    found, expected = run(engine, [prompt] * len(pairs), extreme), run(engine, [prompt] * len(pairs), plain)
    assert [output.error for output in found] == [None] * len(pairs)
    for got, want in zip(found, expected, strict=True):
        assert (got.outputs, got.prompt_logprobs) == (want.outputs, want.prompt_logprobs)


def test_changes_after_submission_change_nothing(make_engine: MakeEngine) -> None:
    engine, prompt = make_engine(), some_prompt(8)
    params = SamplingParams(max_tokens=12, ignore_eos=True, logit_bias={5: 1.0}, stop_token_ids=[290], seed=3)
    expected = run(engine, [prompt], params)[0]
    given = list(prompt)
    engine.add_request("0", given, params)
    engine.step()
    assert params.logit_bias is not None
    params.logit_bias[2**70] = math.nan
    params.max_tokens = params.stop_token_ids = params.temperature = params.seed = None  # type: ignore[assignment]
    given.clear()
    (output,) = drain(engine)
    assert output.outputs == expected.outputs
    assert output.prompt_token_ids == prompt


def test_an_end_of_sequence_outside_the_vocabulary_is_no_end(make_engine: MakeEngine, decoder: Decoder) -> None:
    odd = copy(decoder)
    odd.config = replace(decoder.config, eos_token_ids=(*decoder.config.eos_token_ids, 300, 2**70, -5))
    params = SamplingParams(temperature=0, max_tokens=5, min_tokens=3)
    outputs = run(make_engine(odd), [[5, 6], [7, 8]], [params, GREEDY])
    assert [output.outputs for output in outputs] == [
        output.outputs for output in run(make_engine(), [[5, 6], [7, 8]], [params, GREEDY])
    ]


def test_equal_parameters_are_checked_once_and_changed_ones_again(
    make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_engine()
    checks = Mock(wraps=intake.checked)
    monkeypatch.setattr(intake, "checked", checks)
    params = SamplingParams(temperature=0, max_tokens=3, ignore_eos=True)
    prompts = [some_prompt(2 + i) for i in range(6)]
    outputs = run(engine, [*prompts, prompts[0][:1] * 510], [params, copy(params), *[params] * 5])
    assert [len(each.outputs[0].token_ids) for each in outputs] == [3] * 6 + [2]  # the last fills the context
    assert checks.call_count == 1
    params.max_tokens = 5
    (output,) = run(engine, prompts[:1], [params])
    assert len(output.outputs[0].token_ids) == 5
    assert checks.call_count == 2
    params.max_tokens = True  # equal to 1, which would be known
    with pytest.raises(ValueError, match="max_tokens: expected an integer"):
        engine.add_request("0", [1], params)
    params.max_tokens, params.stop_token_ids = 5, [output.outputs[0].token_ids[0]]
    assert len(run(engine, prompts[:1], [params])[0].outputs[0].token_ids) == 1
    params.stop_token_ids.clear()
    assert len(run(engine, prompts[:1], [params])[0].outputs[0].token_ids) == 5


def test_a_bounded_number_of_parameters_is_kept(make_engine: MakeEngine) -> None:
    engine = make_engine()
    for seed in range(1000):
        engine.add_request("0", [1], SamplingParams(seed=seed))
        engine.abort("0")
    assert len(engine._intake._known) <= 64
