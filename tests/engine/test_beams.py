"""Beam search finds what transformers' does, in any company."""

from __future__ import annotations

import itertools
import math
import random
import re
from dataclasses import replace
from typing import Any

import pytest
import torch
from engine.runs import EOS, MakeEngine, drain, make_tokenizer, run, some_prompt
from transformers import LlamaForCausalLM

from pybatch.engine import CompletionOutput, Engine, EngineConfig, RequestOutput, SamplingParams
from pybatch.engine.beams import BeamSearch, Candidates, ranked
from pybatch.engine.structured.compiler import vocabulary_of
from pybatch.engine.structured.grammar import grammar_text, make_matcher
from pybatch.engine.structured.grammar import make_tokenizer as make_llguidance
from pybatch.engine.structured.matcher import Matcher, fill_masks
from pybatch.engine.structured.params import StructuredOutputsParams
from pybatch.model import Decoder

STOPS = list(range(1, 300, 7))  # so that beams end


def beams(width: int = 4, **params: Any) -> SamplingParams:
    params = {"max_tokens": 12, "stop_token_ids": STOPS, "ignore_eos": True, **params}
    return SamplingParams(n=width, use_beam_search=True, **params)


def score(answer: CompletionOutput, length_penalty: float) -> float:
    assert answer.cumulative_logprob is not None
    return answer.cumulative_logprob / len(answer.token_ids) ** length_penalty


def expected(model: LlamaForCausalLM, prompt: list[int], params: SamplingParams, **more: Any) -> list[Any]:
    """Of transformers: (tokens, score) of each answer."""
    found = model.generate(
        torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.int64),
        num_beams=params.best_of or params.n,
        num_return_sequences=params.n,
        do_sample=False,
        length_penalty=params.length_penalty,
        early_stopping=params.early_stopping,
        max_new_tokens=params.max_tokens,
        eos_token_id=params.stop_token_ids,
        pad_token_id=0,  # which ends nothing, and is no answer's token below
        return_dict_in_generate=True,
        output_scores=True,
        **more,
    )
    answers = []
    for row, total in zip(found.sequences.tolist(), found.sequences_scores.tolist(), strict=True):
        tokens = row[len(prompt) :]
        ends = [i for i, token in enumerate(tokens) if token in (params.stop_token_ids or ())]
        answers.append((tokens[: ends[0] + 1] if ends else tokens, total))
    return answers


def assert_same(output: RequestOutput, answers: list[Any], params: SamplingParams) -> None:
    assert output.error is None
    assert [answer.index for answer in output.outputs] == list(range(params.n))
    assert [answer.token_ids for answer in output.outputs] == [tokens for tokens, _ in answers]
    scores = [score(answer, params.length_penalty) for answer in output.outputs]
    assert scores == pytest.approx([total for _, total in answers], rel=2e-5, abs=2e-5)


@pytest.mark.parametrize("seed", range(48))
def test_answers_are_those_of_transformers(seed: int, make_engine: MakeEngine, reference: LlamaForCausalLM) -> None:
    draw = random.Random(seed)
    width = draw.choice((2, 3, 4, 8))  # with 1, transformers does not search
    params = beams(
        draw.randint(1, width),
        best_of=width,
        max_tokens=draw.choice((1, 2, 5, 12, 20)),
        length_penalty=draw.choice((-1.0, 0.0, 0.5, 1.0, 2.0)),
        early_stopping=draw.choice((False, True, "never")),
        stop_token_ids=draw.sample(range(1, 300), draw.choice((1, 10, 60, 150))),
    )
    prompt = some_prompt(draw.choice((1, 5, 16, 33)), draw.randrange(1000))
    (output,) = run(make_engine(), [prompt], params)
    assert_same(output, expected(reference, prompt, params), params)


def test_the_models_own_end_ends_a_beam(make_engine: MakeEngine, reference: LlamaForCausalLM) -> None:
    """And what the search rules out makes nothing else likelier."""
    others = [token for token in range(1, 300) if token % 20]
    params = beams(
        3, stop_token_ids=None, ignore_eos=False, max_tokens=20, min_tokens=3, allowed_token_ids=[0, *others]
    )
    prompt = some_prompt(9, 3)
    (output,) = run(make_engine(), [prompt], params)
    given = replace(params, stop_token_ids=[0])
    suppressed = [token for token in range(300) if token not in (0, *others)]
    assert_same(output, expected(reference, prompt, given, min_new_tokens=3, suppress_tokens=suppressed), params)


GRAMMARS = {
    "[a-e]{1,9}x?": (2, 12),
    "(ab|ac|b)([ab]c?)+": (4, 7),
    "(cat|mat|the sat )+": (3, 16),
    "a|b|c|d|the cat": (8, 9),
}
"""With width and max_tokens."""


@pytest.mark.parametrize("pattern", GRAMMARS)
def test_beams_in_a_grammar_are_those_of_transformers(
    pattern: str, make_engine: MakeEngine, reference: LlamaForCausalLM
) -> None:
    width, most = GRAMMARS[pattern]
    constraint = StructuredOutputsParams(regex=pattern)
    vocabulary = vocabulary_of(make_tokenizer(), 300, frozenset({EOS}))
    first = Matcher(make_matcher(make_llguidance(vocabulary), grammar_text(constraint)))
    mask = torch.zeros(1, -(-300 // 32), dtype=torch.int32)

    def allowed(_: int, tokens: torch.Tensor) -> list[int]:
        output = tokens[len(prompt) :].tolist()
        if EOS in output:
            return [EOS]
        place = first.copy()
        place.accept(output)
        fill_masks(mask, [(place, 0)])
        bits = (mask[0, :, None] >> torch.arange(32)) & 1
        return bits.flatten().nonzero().flatten().tolist()

    for seed, penalty in enumerate((1.0, 0.0, 2.0)):
        prompt = some_prompt(9, seed)
        params = beams(width, max_tokens=most, length_penalty=penalty, ignore_eos=False, stop_token_ids=None)
        (output,) = run(make_engine(), [prompt], replace(params, structured_outputs=constraint))
        ending = replace(params, stop_token_ids=[EOS])
        answers = expected(reference, prompt, ending, prefix_allowed_tokens_fn=allowed)
        there_are = [answer for answer in answers if answer[1] > -1e5]
        assert len(there_are) == width or pattern.startswith("a|b")
        assert_same(output, there_are, replace(params, n=len(there_are)))
        assert all(a.finish_reason == "length" or re.fullmatch(pattern, a.text) for a in output.outputs)


def test_beams_in_a_grammar_end_where_nothing_can_follow_if_no_end_is_drawn(make_engine: MakeEngine) -> None:
    texts = {"ab": 2, "cat": 1, "the": 1, "x": 1}
    for more in ({"ignore_eos": True}, {"ignore_eos": False, "min_tokens": 9}):
        params = beams(4, stop_token_ids=None, structured_outputs={"choice": [*texts]}, **more)
        (output,) = run(make_engine(), [some_prompt(9)], params)
        assert {answer.text for answer in output.outputs} <= texts.keys()
        assert all(answer.finish_reason == "stop" for answer in output.outputs)


def test_beams_that_a_grammar_and_other_parameters_leave_nothing_are_an_error(make_engine: MakeEngine) -> None:
    params = beams(3, structured_outputs={"regex": "a+"}, allowed_token_ids=[200], stop_token_ids=None)
    (output,) = run(make_engine(), [some_prompt(9)], params)
    assert "structured_outputs and allowed_token_ids leave no token to draw" in (output.error or "")


def test_penalties_change_log_probabilities(make_engine: MakeEngine, reference: LlamaForCausalLM) -> None:
    params = beams(4, repetition_penalty=1.3, max_tokens=10)
    prompt = some_prompt(30, 4)
    (output,) = run(make_engine(), [prompt], params)
    assert_same(output, expected(reference, prompt, params, repetition_penalty=1.3), params)


def test_log_probabilities_of_an_answer_add_up(make_engine: MakeEngine) -> None:
    (output,) = run(make_engine(), [some_prompt(20)], beams(3, logprobs=2))
    for answer in output.outputs:
        assert answer.logprobs is not None
        each = [entry[token] for entry, token in zip(answer.logprobs, answer.token_ids, strict=True)]
        assert sum(entry.logprob for entry in each) == answer.cumulative_logprob
        assert all({1, 2} <= {value.rank for value in entry.values()} for entry in answer.logprobs)
        assert all(entry.decoded_token is not None for entry in each)


def test_a_stop_string_ends_a_beam_that_comes_to_it(make_engine: MakeEngine) -> None:
    params = beams(4, stop_token_ids=None, ignore_eos=True)
    (whole,) = run(make_engine(), [some_prompt(20)], params)
    text = whole.outputs[0].text
    stop = text[len(text) // 2 :][:2]
    (output,) = run(make_engine(), [some_prompt(20)], replace(params, stop=stop, early_stopping="never"))
    assert any(answer.stop_reason == stop for answer in output.outputs)
    for answer in output.outputs:
        assert stop not in answer.text
        assert (answer.finish_reason == "stop") == (answer.stop_reason == stop)


@pytest.mark.parametrize(
    "ending",
    [
        {"stop": [chr(letter) for letter in range(33, 127) if chr(letter) not in "aeiou"]},
        {"structured_outputs": {"regex": "([aeiou][a-z])*[^aeiou]"}},
    ],
    ids=["stop strings", "grammar"],
)
def test_where_most_tokens_end_a_beam_company_changes_nothing(make_engine: MakeEngine, ending: dict[str, Any]) -> None:
    """A search looks at as many tokens as it would alone, though the sampler finds more for another's report."""
    few = beams(2, stop_token_ids=None, early_stopping="never", length_penalty=4.0, **ending)
    prompts = [some_prompt(20, i) for i in range(6)]
    alone = [bits(run(make_engine(), [prompt], few)[0]) for prompt in prompts]
    together = run(make_engine(), [*prompts, prompts[0]], [few] * 6 + [replace(few, logprobs=-1)])
    assert [bits(output) for output in together[:6]] == alone
    told = [(answer.token_ids, answer.cumulative_logprob) for answer in together[6].outputs]
    assert told == [(tokens, total) for tokens, _, total in alone[0]]


def test_one_step_brings_all_of_an_answer_and_a_stream_its_end_alone(make_engine: MakeEngine) -> None:
    engine = make_engine()
    engine.add_request("0", some_prompt(20), beams(4), stream=True)
    (output,) = drain(engine)
    assert output.finished
    assert len(output.outputs) == 4


# ---- in a batch ----

SHARED = some_prompt(40, 99)
PROMPTS = [(SHARED if i % 2 else []) + some_prompt(1 + 7 * i % 50, i) for i in range(16)]
PARAMS = [
    beams(
        1 + i % 4,
        best_of=1 + i % 5 if i % 5 >= i % 4 else None,
        max_tokens=5 + i,
        stop_token_ids=STOPS if i % 3 else None,
        repetition_penalty=1.1 if i % 4 == 1 else 1.0,
        early_stopping=(False, True, "never")[i % 3],
        logprobs=1,
    )
    if i % 4
    else SamplingParams(temperature=0.9, seed=i, max_tokens=20, ignore_eos=True, logprobs=1)
    for i in range(16)
]


def bits(output: RequestOutput) -> Any:
    assert output.error is None
    return [(answer.token_ids, answer.logprobs, answer.cumulative_logprob) for answer in output.outputs]


@pytest.fixture(scope="module", params=["auto", "int8"])
def alone(request: pytest.FixtureRequest, decoder: Decoder) -> tuple[str, list[Any]]:
    config = EngineConfig(num_kv_blocks=64, enable_prefix_caching=False, kv_cache_dtype=request.param)
    engine = Engine(decoder, None, config)
    return request.param, [bits(run(engine, [p], q)[0]) for p, q in zip(PROMPTS, PARAMS, strict=True)]


@pytest.mark.parametrize(
    "config",
    [
        {"max_num_seqs": 5, "num_kv_blocks": 20},
        {"max_num_batched_tokens": 16, "max_num_seqs": 7, "enable_prefix_caching": False},
        {"max_num_batched_tokens": 5},
        {"num_kv_blocks": 16, "predict_lengths": False},
        {"num_kv_blocks": 16, "predict_lengths": False, "enable_prefix_caching": False},
        {"num_kv_blocks": 28, "predict_lengths": False, "block_size": 8, "policy": "micro"},
    ],
    ids=str,
)
def test_a_batch_changes_no_bit(config: dict[str, Any], alone: tuple[str, list[Any]], make_engine: MakeEngine) -> None:
    """Nor do chunks of a prompt, cached prefixes and preemption."""
    dtype, expected = alone
    engine = make_engine(with_tokenizer=False, kv_cache_dtype=dtype, **config)
    for i in sorted(range(16), key=lambda i: (i * 7) % 16):
        engine.add_request(str(i), PROMPTS[i], PARAMS[i])
    outputs = {}
    while engine.has_unfinished():
        outputs.update({int(output.request_id): bits(output) for output in engine.step()})
        engine.check_integrity()
    assert [outputs[i] for i in range(16)] == expected
    if config.get("predict_lengths") is False:
        assert engine.metrics.preemptions > 0


def test_beams_that_are_preempted_once_they_are_computed_go_on(
    make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where another sequence's pruning needs their blocks. They waited for ever, or were in the queue twice."""
    params = [beams(3, max_tokens=20, logprobs=1), beams(2, max_tokens=24, logprobs=1)]
    prompts = [some_prompt(30, 1), some_prompt(20, 2)]
    expected = [bits(each) for each in run(make_engine(with_tokenizer=False), prompts, params)]
    engine = make_engine(with_tokenizer=False)
    compute, steps = engine._computer.compute, itertools.count()

    def then_preempt(*args: Any) -> Any:
        computed = compute(*args)
        if next(steps) % 3 == 2:
            engine._scheduler.preemption.preempt()
        return computed

    monkeypatch.setattr(engine._computer, "compute", then_preempt)
    for i, prompt in enumerate(prompts):
        engine.add_request(str(i), prompt, params[i])
    outputs = {}
    for _ in range(500):
        if not engine.has_unfinished():
            break
        outputs.update({int(output.request_id): bits(output) for output in engine.step()})
        engine.check_integrity()
    assert engine.metrics.preemptions > 5
    assert [outputs.get(i) for i in range(2)] == expected


def test_beams_share_blocks_and_return_them_at_once(make_engine: MakeEngine) -> None:
    """Eight prompts of 64 tokens, as many requests of their own would have, come to 32 blocks, and 40 with output."""
    engine = make_engine(num_kv_blocks=40)
    engine.add_request("0", some_prompt(64), beams(8, max_tokens=17, stop_token_ids=None))
    used = []
    while engine.has_unfinished():
        engine.step()
        engine.check_integrity()
        used.append(engine.num_kv_blocks_used)
    assert used == [4] + [4 + 8] * 15 + [0]


def test_an_aborted_search_leaves_nothing_behind(make_engine: MakeEngine) -> None:
    engine = make_engine(num_kv_blocks=16)
    for i in range(3):
        engine.add_request(str(i), PROMPTS[i], beams(3, max_tokens=40, stop_token_ids=None))
    for _ in range(30):
        engine.step()
    for i in range(3):
        engine.abort(str(i))
    assert engine.step() == []
    assert engine.num_kv_blocks_used == 0


def test_a_search_that_fails_disturbs_nobody(make_engine: MakeEngine) -> None:
    """Bad words that leave one beam nothing to go on with."""
    engine = make_engine()
    failing = beams(2, stop_token_ids=None, min_tokens=12)
    failing.allowed_token_ids, failing.stop_token_ids = [5, 6], [5, 6]
    for i, params in enumerate((PARAMS[0], failing, PARAMS[1])):
        engine.add_request(str(i), PROMPTS[i], params)
    outputs = {output.request_id: output for output in drain(engine)}
    assert "leave no token to draw" in (outputs["1"].error or "")
    assert [answer.finish_reason for answer in outputs["1"].outputs] == ["error"]
    assert outputs["0"].error is None
    assert outputs["2"].error is None


@pytest.mark.parametrize(
    ("params", "config", "says"),
    [
        ({"max_tokens": 5}, {"max_num_seqs": 3}, "n: 4 beams are in a step together, but max_num_seqs = 3"),
        ({"max_tokens": 40}, {"num_kv_blocks": 12}, "do not fit 12 KV blocks .* with max_tokens = 28 they would"),
        ({"max_tokens": 1}, {"num_kv_blocks": 3}, "n: 4 beams of 21 tokens do not fit 3 KV blocks .* give fewer"),
    ],
)
def test_beams_that_never_fit_are_refused(
    params: dict[str, Any], config: dict[str, Any], says: str, make_engine: MakeEngine
) -> None:
    engine = make_engine(**config)
    with pytest.raises(ValueError, match=says):
        engine.add_request("0", some_prompt(20), beams(4, **params))
    assert run(engine, [some_prompt(20)], beams(2, max_tokens=3))[0].error is None


def test_without_max_tokens_beams_take_what_the_pool_holds(make_engine: MakeEngine) -> None:
    engine = make_engine(num_kv_blocks=12)
    (output,) = run(engine, [some_prompt(20)], beams(4, max_tokens=None, stop_token_ids=None))
    assert [len(answer.token_ids) for answer in output.outputs] == [28] * 4


@pytest.mark.parametrize(
    ("params", "says"),
    [
        ({"use_beam_search": 1}, "use_beam_search: expected True or False, got 1"),
        ({"use_beam_search": True, "n": 3, "best_of": 2}, "best_of: expected an integer of at least 3"),
        ({"n": 2, "best_of": 3}, "best_of: expected None or n's value, without use_beam_search, got 3"),
        ({"length_penalty": 11}, "length_penalty: expected a number of at least -10 and at most 10, got 11"),
        ({"early_stopping": "always"}, "early_stopping: expected True, False or 'never', got 'always'"),
    ],
)
def test_bad_parameters_of_a_search(params: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        SamplingParams(**params)


def test_of_equal_continuations_those_of_better_beams_come_first_and_then_lower_tokens() -> None:
    of_beams = [Candidates([3, 9, 4], [-2.0, -2.0, -2.5]), Candidates([1, 2], [-1.0, -math.inf])]
    found = ranked([-1.0, -2.0], of_beams, 2)
    assert [(each.beam, each.token, each.total) for each in found] == [(0, 3, -3.0), (0, 9, -3.0), (1, 1, -3.0)]


def test_of_equal_hypotheses_the_first_is_better() -> None:
    search = BeamSearch[str](2, length_penalty=1.0, early_stopping=False, max_length=10)
    for name, total in (("a", -4.0), ("b", -2.0), ("c", -4.0)):
        search.finish(name, total, 2)
    assert search.hypotheses == ["b", "a"]
    assert search.is_over(-6.0, 3)  # -2 each token: no better than the worst
    assert not search.is_over(-5.9, 3)
