"""Pinned prefixes stay in the KV cache, whatever else runs."""

from __future__ import annotations

from typing import Any

import pytest
from engine.runs import MakeEngine, drain, run, some_prompt

from pybatch.engine import Engine, RequestOutput, SamplingParams
from pybatch.engine.execution.model_runner import ModelRunner
from pybatch.engine.kv_policies import HeavyHitters, KvPolicy, SnapKV
from pybatch.engine.scheduling.block_pool import Pin

GREEDY = SamplingParams(temperature=0, max_tokens=4, ignore_eos=True, logprobs=1)
PREFIX = some_prompt(41)  # two and a half blocks


def pin(engine: Engine, tokens: list[int]) -> Pin:
    made = engine.pin_prefix("pin", tokens)
    (output,) = drain(engine)
    assert output.error is None
    return made


def cached(engine: Engine, tokens: list[int]) -> int:
    return run(engine, [tokens], GREEDY)[0].num_cached_tokens


@pytest.mark.parametrize("length", [41, 32, 7])
def test_a_pinned_prefix_outlives_others_and_a_reset(make_engine: MakeEngine, length: int) -> None:
    engine = make_engine(num_kv_blocks=10, max_num_seqs=4)
    pinned = pin(engine, PREFIX[:length])
    question = [*PREFIX[:length], 5, 6, 7]
    alone = run(make_engine(enable_prefix_caching=False), [question], GREEDY)[0]
    assert engine.num_kv_blocks_used == engine.num_kv_blocks_pinned == -(-length // 16)
    for _ in range(2):
        run(engine, [some_prompt(60, i) for i in range(6)], GREEDY)  # in turn they take all other blocks
        output = run(engine, [question], GREEDY)[0]
        assert output.num_cached_tokens == length
        assert output.outputs == alone.outputs
        assert engine.reset_prefix_cache()
        engine.check_integrity()
    engine.unpin(pinned)
    engine.unpin(pinned)
    assert engine.num_kv_blocks_used == engine.num_kv_blocks_pinned == 0
    run(engine, [some_prompt(60, i) for i in range(6)], GREEDY)
    assert cached(engine, question) < 16


def test_prefixes_that_begin_alike_share_blocks(make_engine: MakeEngine) -> None:
    engine = make_engine(num_kv_blocks=12)
    pins = [pin(engine, [*PREFIX[:40], *tail]) for tail in ([], [3] * 20, [])]
    assert engine.num_kv_blocks_pinned == 2 + 1 + 2 + 1
    engine.unpin(pins[0])
    engine.check_integrity()
    assert engine.num_kv_blocks_pinned == 2 + 2 + 1
    assert cached(engine, [*PREFIX[:40], *[3] * 21]) == 60
    for each in pins:
        engine.unpin(each)


def test_pins_survive_a_step_that_fails(make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = make_engine(num_kv_blocks=10)
    pinned = pin(engine, PREFIX)
    engine.add_request("lost", some_prompt(50), GREEDY)

    def fail(*arguments: Any) -> None:
        raise MemoryError("injected")

    with monkeypatch.context() as patch:
        patch.setattr(ModelRunner, "run", fail)
        with pytest.raises(MemoryError, match="injected"):
            engine.step()
    engine.check_integrity()
    assert engine.num_kv_blocks_used == engine.num_kv_blocks_pinned == 3
    assert cached(engine, [*PREFIX, 1, 2]) == 41
    engine.unpin(pinned)


def test_a_request_that_does_not_fit_beside_pins_is_refused_with_the_numbers(make_engine: MakeEngine) -> None:
    engine = make_engine(num_kv_blocks=8, max_model_len=128)
    pinned = pin(engine, PREFIX)
    expected = (
        r"prompt: 90 tokens and one of output do not fit max_model_len = 128 \(8 KV blocks of 16 tokens, of which 80 "
        r"tokens are free beside pinned prefixes\)"
    )
    with pytest.raises(ValueError, match=expected):
        engine.add_request("long", some_prompt(90), GREEDY)
    with pytest.raises(ValueError, match="of which 80"):
        engine.expect_runnable(some_prompt(90), GREEDY)
    unbounded = SamplingParams(temperature=0, max_tokens=None, ignore_eos=True)
    assert len(run(engine, [some_prompt(70)], unbounded)[0].outputs[0].token_ids) == 80 - 70
    question = [*PREFIX[:39], *some_prompt(60)]  # of which two blocks are there
    assert len(run(engine, [question], unbounded)[0].outputs[0].token_ids) == 80 + 32 - 99
    engine.unpin(pinned)
    assert len(run(engine, [some_prompt(90)], unbounded)[0].outputs[0].token_ids) == 128 - 90


def test_a_pin_that_leaves_too_little_is_refused_with_the_numbers(make_engine: MakeEngine) -> None:
    engine = make_engine(num_kv_blocks=8, max_model_len=128)
    engine.add_request("long", some_prompt(90), GREEDY)
    with pytest.raises(
        ValueError,
        match="with 3 of 8 KV blocks pinned 5 would be left, and a request that has not finished may need 6",
    ):
        engine.pin_prefix("pin", PREFIX)
    assert [output.request_id for output in drain(engine)] == ["long"]
    with pytest.raises(ValueError, match="8 of the pool's 8 would be pinned: none would be left"):
        engine.pin_prefix("pin", some_prompt(120))
    with pytest.raises(ValueError, match="pin_prefix: enable_prefix_caching is off"):
        make_engine(enable_prefix_caching=False).pin_prefix("pin", PREFIX)
    engine.unpin(pin(engine, some_prompt(100)))


def test_a_pin_that_is_aborted_or_fails_holds_nothing(make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = make_engine(num_kv_blocks=8, max_model_len=128, max_num_batched_tokens=16)
    engine.pin_prefix("gone", PREFIX)
    engine.step()
    engine.abort("gone")

    def fail(*arguments: Any) -> None:
        raise LookupError("injected")

    with monkeypatch.context() as patch:
        patch.setattr(ModelRunner, "run", fail)
        engine.pin_prefix("fails", PREFIX)
        (output,) = drain(engine)
        assert output.error == "LookupError: injected"
    assert engine.num_kv_blocks_used == 0
    assert cached(engine, some_prompt(120)) == 0  # there is room


def test_many_requests_end_beside_pins(make_engine: MakeEngine) -> None:
    """With preemptions, and bits as without pins."""
    params = [SamplingParams(seed=i, max_tokens=70, ignore_eos=True, logprobs=1) for i in range(12)]
    prompts = [(PREFIX if i % 2 else []) + some_prompt(20 + i, i) for i in range(12)]
    expected = run(make_engine(enable_prefix_caching=False), prompts, params)
    engine = make_engine(num_kv_blocks=12, max_num_batched_tokens=32, predict_lengths=False)
    pinned = pin(engine, PREFIX)

    def bits(outputs: list[RequestOutput]) -> list[Any]:
        return [output.outputs for output in outputs]

    assert bits(run(engine, prompts, params)) == bits(expected)
    assert engine.metrics.preemptions > 0
    engine.check_integrity()
    engine.unpin(pinned)


@pytest.mark.parametrize("policy", [SnapKV(budget=60, observed=4), HeavyHitters(heavy=30, recent=34)], ids=str)
def test_what_is_gathered_leaves_a_pin_as_it_is_and_has_room_beside_it(
    make_engine: MakeEngine, policy: KvPolicy
) -> None:
    """Its first blocks are the pin's, and so what is kept of the prompt needs others."""
    params = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True, logprobs=1, kv_policy=policy)
    prompt = [*PREFIX[:32], *some_prompt(56)]
    expected = run(make_engine(enable_prefix_caching=False), [prompt], params)[0].outputs
    engine = make_engine(num_kv_blocks=6 + 3, max_num_seqs=4)
    pinned = pin(engine, PREFIX)
    others = [SamplingParams(temperature=0, max_tokens=20, ignore_eos=True)] * 3
    for prompts in ([prompt], [prompt, *[some_prompt(20, i) for i in range(3)]]):
        assert run(engine, prompts, [params, *others][: len(prompts)])[0].outputs == expected
    assert cached(engine, [*PREFIX, 1, 2]) == 41
    with pytest.raises(ValueError, match=r"prompt: 96 tokens and one of output .*, of which 96 tokens are free"):
        engine.add_request("long", [*PREFIX[:32], *some_prompt(64)], params)
    engine.unpin(pinned)
