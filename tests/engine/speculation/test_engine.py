"""An engine with drafts gives what one without gives, bit by bit."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from engine.runs import MakeEngine, drain, run, some_prompt

from pybatch.engine import Engine, EngineConfig, RequestOutput, SamplingParams
from pybatch.engine.execution import kv_cache
from pybatch.engine.execution.model_runner import ModelRunner
from pybatch.engine.sampling_params import RequestOutputKind
from pybatch.engine.scheduling.sequence import Sequence
from pybatch.engine.speculation.draft_model import DraftModelProposer
from pybatch.model import Decoder, Tokenizer, load_model

FIXED = {"method": "ngram", "num_speculative_tokens": 5, "prompt_lookup_min": 1, "adaptive": False}
PROMPTS = [some_prompt(3 + 5 * i % 40, i, vocab=20) * (1 + i % 3) for i in range(24)]
PARAMS = [
    SamplingParams(
        temperature=(0.0, 0.3, 0.8)[i % 3],
        top_p=0.9 if i % 4 == 1 else 1.0,
        repetition_penalty=1.05 if i % 5 == 0 else 1.0,
        frequency_penalty=0.1 if i % 7 == 0 else 0.0,
        logit_bias={1: 2.0} if i % 6 == 0 else None,
        max_tokens=10 + 7 * i % 50,
        min_tokens=i % 10,
        logprobs=2,
        seed=i,
    )
    for i in range(24)
]


def bits(outputs: list[RequestOutput]) -> list[Any]:
    assert not any(output.error for output in outputs)
    return [[(s.token_ids, s.logprobs, s.text, s.finish_reason, s.stop_reason) for s in o.outputs] for o in outputs]


@pytest.fixture(scope="module")
def expected(decoder: Decoder, int8_decoder: Decoder, tokenizer: Tokenizer) -> dict[Decoder, list[Any]]:
    """Without drafts, by the model."""
    return {
        model: bits(run(Engine(model, tokenizer, EngineConfig(num_kv_blocks=512)), PROMPTS, PARAMS))
        for model in (decoder, int8_decoder)
    }


def check(engine: Engine, expected: list[Any]) -> None:
    assert bits(run(engine, PROMPTS, PARAMS)) == expected
    assert 0 < engine.metrics.drafts.accepted_tokens < engine.metrics.drafts.tokens
    engine.check_integrity()


CONFIGS: list[dict[str, Any]] = [
    {"max_num_seqs": 1},
    {"max_num_seqs": 5},
    {"max_num_seqs": 64, "max_num_batched_tokens": 1024},
    {"max_num_batched_tokens": 16, "max_num_seqs": 7},
    {"num_kv_blocks": 40, "block_size": 8},
    {"num_kv_blocks": 40, "block_size": 8, "enable_prefix_caching": False},
]


@pytest.mark.parametrize("config", CONFIGS, ids=str)
@pytest.mark.parametrize("quantised", [False, True])
def test_looked_up_drafts_change_no_bit(
    make_engine: MakeEngine,
    decoder: Decoder,
    int8_decoder: Decoder,
    expected: dict[Decoder, list[Any]],
    config: dict[str, Any],
    quantised: bool,
) -> None:
    model = int8_decoder if quantised else decoder
    check(make_engine(model, speculative_config=FIXED, **config), expected[model])


@pytest.mark.parametrize("config", CONFIGS[1:5], ids=str)
def test_drafts_of_what_mostly_followed_change_no_bit(
    make_engine: MakeEngine, decoder: Decoder, expected: dict[Decoder, list[Any]], config: dict[str, Any]
) -> None:
    method = {"method": "suffix", "adaptive": False}
    check(make_engine(decoder, speculative_config=method, **config), expected[decoder])


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_drafts_of_a_model_change_no_bit(
    decoder: Decoder,
    int8_decoder: Decoder,
    tokenizer: Tokenizer,
    expected: dict[Decoder, list[Any]],
    config: dict[str, Any],
) -> None:
    method = {"method": "draft_model", "model": "given", "num_speculative_tokens": 4, "adaptive": False}
    config = {"num_kv_blocks": 512, "speculative_config": method, **config}
    engine = Engine(decoder, tokenizer, EngineConfig(**config), int8_decoder)
    check(engine, expected[decoder])
    accepted = engine.metrics.drafts.accepted_tokens / engine.metrics.drafts.tokens
    assert accepted > 0.4  # of all four, though none counts after a wrong one


@pytest.mark.parametrize("method", ["ngram", "suffix", "draft_model"])
def test_however_many_are_taken_no_bit_changes(
    decoder: Decoder, tokenizer: Tokenizer, expected: dict[Decoder, list[Any]], method: str
) -> None:
    given = {"method": method, **({"model": "given"} if method == "draft_model" else {})}
    engine = Engine(decoder, tokenizer, EngineConfig(num_kv_blocks=512, speculative_config=given), decoder)
    assert bits(run(engine, PROMPTS, PARAMS)) == expected[decoder]


def test_a_model_that_always_agrees_is_always_right(decoder: Decoder, tokenizer: Tokenizer) -> None:
    method = {"model": "given", "num_speculative_tokens": 4, "adaptive": False}
    engine = Engine(decoder, tokenizer, EngineConfig(num_kv_blocks=512, speculative_config=method), decoder)
    params = [SamplingParams(temperature=t, max_tokens=41, ignore_eos=True, seed=3) for t in (0.0, 1.0)]
    run(engine, [some_prompt(20, 1), some_prompt(50, 2)], params)
    drafts = engine.metrics.drafts
    assert drafts.accepted_tokens == drafts.tokens == 64  # 8 of each 10 after the first two tokens of both
    assert engine.metrics.steps <= 11


class Always:
    """Drafts one token after any other."""

    has_read = False

    def __init__(self, token: int) -> None:
        self.token = token

    def propose(self, sequences: list[Sequence], counts: list[int]) -> list[list[int]]:
        return [[self.token] * count for count in counts]


def test_a_looked_up_draft_is_right_as_often_as_the_model_draws_it(decoder: Decoder, tokenizer: Tokenizer) -> None:
    """Leviathan's rule where q is 1: kept with the probability p, and else what is drawn follows p without it."""
    engine = Engine(decoder, tokenizer, EngineConfig(num_kv_blocks=2048, speculative_config=FIXED))
    assert engine._speculator is not None
    allowed, draft, prompt, seeds = [40, 80, 120, 160], 80, some_prompt(12, 4), 3000
    engine._speculator._proposer = Always(draft)
    params = [
        SamplingParams(temperature=4.0, max_tokens=3, ignore_eos=True, allowed_token_ids=allowed, seed=7 * i)
        for i in range(seeds)
    ]
    outputs = [output.outputs[0].token_ids for output in run(engine, [prompt] * seeds, params)]
    drafts = engine.metrics.drafts
    assert drafts.tokens == seeds
    assert drafts.accepted_tokens == sum(tokens[1] == draft for tokens in outputs)
    shares: list[float] = []
    for first in allowed:
        (told,) = run(engine, [[*prompt, first]], [SamplingParams(temperature=0, max_tokens=1, logprobs=300)])
        assert told.outputs[0].logprobs is not None
        logprobs = torch.tensor([told.outputs[0].logprobs[0][token].logprob for token in allowed]).double()
        expected = torch.softmax(logprobs / 4.0, 0)
        second = torch.tensor([allowed.index(tokens[1]) for tokens in outputs if tokens[0] == first])
        counts = torch.bincount(second, minlength=4)
        assert float(((counts - expected * len(second)) ** 2 / (expected * len(second))).sum()) < 21.1  # 1 in 10,000
        shares += [float(expected[allowed.index(draft)])] * len(second)
    expected_right = sum(shares)
    assert abs(drafts.accepted_tokens - expected_right) < 4 * math.sqrt(expected_right)


def test_drafts_drawn_in_the_same_race_are_mostly_right(
    decoder: Decoder, int8_decoder: Decoder, tokenizer: Tokenizer
) -> None:
    """96% of them. Of tokens that one random number picks from both models' running sums 62% are the same."""
    method = {"model": "given", "num_speculative_tokens": 1, "adaptive": False}
    engine = Engine(decoder, tokenizer, EngineConfig(num_kv_blocks=2048, speculative_config=method), int8_decoder)
    params = [SamplingParams(temperature=1.0, max_tokens=60, ignore_eos=True, seed=i) for i in range(32)]
    run(engine, [some_prompt(8, i) for i in range(32)], params)
    drafts = engine.metrics.drafts
    assert drafts.accepted_tokens / drafts.tokens > 0.9


def test_what_a_fault_of_the_machine_discards_is_freed(decoder: Decoder, tokenizer: Tokenizer) -> None:
    """The draft model's blocks too, which a sequence holds as long as it lives."""
    method = {"method": "draft_model", "model": "given", "num_speculative_tokens": 3, "adaptive": False}
    engine = Engine(decoder, tokenizer, EngineConfig(num_kv_blocks=128, speculative_config=method), decoder)
    proposer = engine._speculator._proposer  # type: ignore[union-attr]
    assert isinstance(proposer, DraftModelProposer)
    params = SamplingParams(temperature=0, max_tokens=20, ignore_eos=True)
    for i in range(4):
        engine.add_request(str(i), some_prompt(20, i), params)
    for _ in range(3):
        engine.step()
    assert len(proposer._followers) == 4
    with mock.patch.object(ModelRunner, "run", side_effect=MemoryError), pytest.raises(MemoryError):
        engine.step()
    (output,) = run(engine, [some_prompt(5)], params)
    assert output.error is None
    assert len(proposer._followers) <= 1  # the sampler knows the last step's sequences


def test_a_prompt_that_the_draft_model_reads_in_pieces(decoder: Decoder, tokenizer: Tokenizer) -> None:
    method = {"model": "given", "num_speculative_tokens": 3, "adaptive": False}
    config = EngineConfig(num_kv_blocks=512, max_num_batched_tokens=16, speculative_config=method)
    engine = Engine(decoder, tokenizer, config, decoder)
    run(engine, [some_prompt(100, 1)], [SamplingParams(temperature=0, max_tokens=40, ignore_eos=True)])
    assert engine.metrics.drafts.accepted_tokens == engine.metrics.drafts.tokens > 0


def test_a_draft_model_of_other_tokens_is_an_error(decoder: Decoder, tiny_model: Path) -> None:
    other = load_model(tiny_model, skip_tokenizer=True).decoder
    config = EngineConfig(num_kv_blocks=64, speculative_config={"model": "given"})
    with pytest.raises(ValueError, match="speculative_config: model: expected a vocabulary of 300 tokens"):
        Engine(decoder, None, config, other)
    with pytest.raises(ValueError, match="speculative_config: model: expected it to be loaded"):
        Engine(decoder, None, config)


def test_a_draft_models_memory_is_counted(decoder: Decoder, int8_decoder: Decoder) -> None:
    free, config = 8 << 20, {"memory_utilization": 0.5, "block_size": 16, "max_num_seqs": 512}
    with mock.patch.object(kv_cache, "free_memory", return_value=free):
        plain = Engine(decoder, None, EngineConfig(**config))
        drafting = Engine(decoder, None, EngineConfig(**config, speculative_config={"model": "given"}), int8_decoder)
    assert plain.kv_cache_bytes == pytest.approx(free / 2, rel=0.01)
    assert drafting.kv_cache_bytes == pytest.approx(free / 2, rel=0.01)
    assert drafting.num_kv_blocks == plain.num_kv_blocks * 2 // 3  # the quantised one keeps half as much for a token
    proposer = drafting._speculator._proposer  # type: ignore[union-attr]
    pools = [drafting._kv_cache.pool, proposer._kv_cache.pool]  # type: ignore[attr-defined]
    assert sum(pool.nbytes for pool in pools) == drafting.kv_cache_bytes
    assert drafting.weight_bytes == decoder.weight_bytes() + int8_decoder.weight_bytes()


def test_a_stream_has_several_tokens_at_a_time(make_engine: MakeEngine) -> None:
    engine = make_engine(speculative_config=FIXED)
    params = SamplingParams(temperature=0, max_tokens=30, ignore_eos=True, output_kind=RequestOutputKind.DELTA)
    engine.add_request("0", [5, 6, 7] * 5, params, stream=True)
    pieces = [output.outputs[0].token_ids for output in drain(engine)]
    assert [token for piece in pieces for token in piece] == run(make_engine(), [[5, 6, 7] * 5], params)[0].outputs[
        0
    ].token_ids
    assert max(map(len, pieces)) > 1


def test_stops_cut_what_was_drafted_beyond_them(make_engine: MakeEngine) -> None:
    prompt, plain, drafting = [5, 6, 7] * 5, make_engine(), make_engine(speculative_config=FIXED)
    (free,) = run(plain, [prompt], SamplingParams(temperature=0, max_tokens=40, ignore_eos=True))
    tokens, text = free.outputs[0].token_ids, free.outputs[0].text
    for at in range(1, 40, 3):
        for params in (
            SamplingParams(temperature=0, max_tokens=at),
            SamplingParams(temperature=0, max_tokens=40, stop_token_ids=[tokens[at]]),
            SamplingParams(temperature=0, max_tokens=40, stop=text[at : at + 2], min_tokens=at // 2),
        ):
            first, second = run(plain, [prompt], params)[0].outputs, run(drafting, [prompt], params)[0].outputs
            assert first == second
    assert drafting.metrics.output_tokens == plain.metrics.output_tokens - 40


def test_only_what_was_right_is_found_in_the_prefix_cache(make_engine: MakeEngine) -> None:
    prompt, params = [5, 6, 7] * 7, SamplingParams(temperature=0, max_tokens=60, ignore_eos=True)
    plain, drafting = make_engine(block_size=8), make_engine(block_size=8, speculative_config=FIXED)
    (output,) = run(drafting, [prompt], params)
    run(plain, [prompt], params)
    assert drafting.metrics.drafts.accepted_tokens > 0
    longer = [prompt + output.outputs[0].token_ids]
    (again,), (expected,) = (run(engine, longer, params) for engine in (drafting, plain))
    assert again.outputs == expected.outputs
    assert again.num_cached_tokens >= expected.num_cached_tokens >= 72


def test_times_between_tokens_add_up(make_engine: MakeEngine) -> None:
    engine = make_engine(speculative_config=FIXED)
    run(engine, [[5, 6, 7] * 5] * 3, SamplingParams(temperature=0, max_tokens=40, ignore_eos=True))
    drafts, between = engine.metrics.drafts, engine.metrics.inter_token
    assert between.count == 3 * 39
    assert sum(drafts.accepted_by_position) == drafts.accepted_tokens
    assert drafts.accepted_by_position == sorted(drafts.accepted_by_position, reverse=True)
