"""Preempted sequences whose blocks are moved to the host and back have the bits that they have otherwise."""

from __future__ import annotations

from typing import Any

import pytest
from engine.runs import MakeEngine, drain, run, some_prompt

from pybatch.engine import Engine, EngineConfig, SamplingParams
from pybatch.engine.execution.swap_cost import SwapCost
from pybatch.engine.kv_policies import StreamingLLM
from pybatch.model import Decoder

PARAMS = [SamplingParams(seed=i, max_tokens=40, ignore_eos=True, logprobs=1, n=1 + (i == 3)) for i in range(8)]
PROMPTS = [some_prompt(20 + 3 * i, i) for i in range(8)]
SHORT: dict[str, Any] = {"num_kv_blocks": 14, "max_num_batched_tokens": 32, "predict_lengths": False}


def always(engine: Engine) -> Engine:
    engine._swap_cost.pays = lambda tokens, blocks: True  # type: ignore[method-assign]
    engine._new_schedule()
    return engine


@pytest.mark.parametrize("caching", [True, False])
@pytest.mark.parametrize("kv_cache_dtype", ["float32", "int8"])
def test_a_swapped_sequence_has_the_same_bits_and_computes_nothing_again(
    make_engine: MakeEngine, caching: bool, kv_cache_dtype: str
) -> None:
    config = {"enable_prefix_caching": caching, "kv_cache_dtype": kv_cache_dtype}
    expected = run(make_engine(enable_prefix_caching=False, kv_cache_dtype=kv_cache_dtype), PROMPTS, PARAMS)
    recomputing = make_engine(**SHORT, **config)
    run(recomputing, PROMPTS, PARAMS)
    engine = always(make_engine(**SHORT, **config, swap_space=0.01))
    assert [output.outputs for output in run(engine, PROMPTS, PARAMS)] == [output.outputs for output in expected]
    metrics = engine.metrics
    assert metrics.preemptions > 0
    assert metrics.swapped_out_blocks >= metrics.swapped_in_blocks > 0
    assert metrics.host_blocks_now == 0
    known = sum(len(prompt) for prompt in PROMPTS) + metrics.output_tokens
    assert metrics.step_tokens <= known + 40  # a sample that found no room when it was forked is computed
    assert recomputing.metrics.step_tokens > metrics.step_tokens


def test_host_blocks_are_free_again_after_aborts_and_steps_that_fail(make_engine: MakeEngine) -> None:
    engine = always(make_engine(**SHORT, swap_space=0.01))
    for i, (prompt, params) in enumerate(zip(PROMPTS, PARAMS, strict=True)):
        engine.add_request(str(i), prompt, params)
    while engine.metrics.host_blocks_now == 0:
        engine.step()
    engine.check_integrity()
    for i in range(8):
        engine.abort(str(i))
    engine.check_integrity()
    assert engine._scheduler.swap_space is not None
    assert engine._scheduler.swap_space.num_used == 0


def test_where_the_host_has_no_room_sequences_are_computed_again(make_engine: MakeEngine) -> None:
    expected = run(make_engine(enable_prefix_caching=False), PROMPTS, PARAMS)
    engine = make_engine(**SHORT)
    block = engine.kv_cache_bytes // engine.num_kv_blocks
    small = always(make_engine(**SHORT, swap_space=2 * block / 2**30))
    assert [output.outputs for output in run(small, PROMPTS, PARAMS)] == [output.outputs for output in expected]
    assert small.metrics.preemptions > 0


@pytest.mark.parametrize("caching", [True, False])
def test_what_is_preempted_for_a_pruning_is_computed_again(make_engine: MakeEngine, caching: bool) -> None:
    """Its blocks are written before a move could begin. The sinks' copies take more than what is dropped at first."""
    prompts = [some_prompt(20), some_prompt(61)]
    sinks = StreamingLLM(sinks=32, window=8)
    params = [SamplingParams(seed=1, max_tokens=30, ignore_eos=True, logprobs=1, kv_policy=p) for p in (None, sinks)]
    config = {"block_size": 8, "with_tokenizer": False, "enable_prefix_caching": caching}
    expected = run(make_engine(**config), prompts, params)
    engine = always(make_engine(**config, num_kv_blocks=12, predict_lengths=False, swap_space=0.01))
    assert [output.outputs for output in run(engine, prompts, params)] == [output.outputs for output in expected]
    assert engine.metrics.preemptions > 0


def test_a_cost_that_is_measured_decides() -> None:
    measured: list[None] = []

    def seconds_per_block() -> float:
        measured.append(None)
        return 0.001

    token = 0.0
    cost = SwapCost(seconds_per_block, lambda: token)
    assert not cost.pays(16, 1)  # nothing is known of what a token takes
    token = 0.0001
    assert cost.pays(16, 1)
    assert not cost.pays(9, 1)
    assert len(measured) == 1


def test_moves_are_measured(decoder: Decoder) -> None:
    engine = Engine(decoder, None, EngineConfig(num_kv_blocks=64, max_model_len=64, swap_space=0.01))
    run(engine, [some_prompt(20)], PARAMS[0])
    engine._swap_cost.pays(16, 1)
    assert 0 < engine.swap_seconds < 0.1
    assert not list(drain(engine))


@pytest.mark.parametrize("space", [-1, True, "4", float("inf")])
def test_a_space_that_is_none_is_refused(space: Any) -> None:
    with pytest.raises(ValueError, match="swap_space: expected a number of GiB, at least 0, got"):
        EngineConfig(swap_space=space)


def test_too_large_a_space_is_refused(decoder: Decoder) -> None:
    with pytest.raises(ValueError, match=r"swap_space: no memory for .* bytes; give less"):
        Engine(decoder, None, EngineConfig(num_kv_blocks=8, max_model_len=64, swap_space=2.0**33))
