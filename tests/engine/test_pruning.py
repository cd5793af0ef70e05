"""Requests with a kv_policy: the papers' algorithms, bits that no company changes, and blocks that are free at once."""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from engine.pruned_model import PrunedModel
from engine.runs import MakeEngine, run, some_prompt
from transformers import LlamaForCausalLM, MistralConfig, MistralForCausalLM

from pybatch.engine import Engine, EngineConfig, RequestOutput, SamplingParams
from pybatch.engine.kv_policies import HeavyHitters, KvPolicy, SnapKV, StreamingLLM
from pybatch.model import Decoder, load_model

SIZE = 8  # of blocks


def params(policy: KvPolicy | None, **changed: Any) -> SamplingParams:
    return SamplingParams(
        **{"temperature": 0.0, "max_tokens": 40, "ignore_eos": True, "logprobs": 1, "kv_policy": policy, **changed}
    )


def keep_window(policy: StreamingLLM, model: PrunedModel, prompt: int, count: int) -> None:
    """StreamingLLM after `count` tokens, with sinks and what is dropped rounded to blocks."""
    sinks = -(-policy.sinks // SIZE) * SIZE
    first = max(sinks, (count + 1 - policy.window) // SIZE * SIZE)  # of the window
    if count >= prompt:
        for layer in model.layers:
            kept = (layer.positions < sinks) | (layer.positions >= first)
            layer.keep(kept[0].nonzero().flatten().expand(len(kept), -1))


def keep_observed(policy: SnapKV, model: PrunedModel, prompt: int, count: int) -> None:
    """SnapKV: once, at the end of a prompt that is longer than what is kept."""
    before = prompt - policy.observed
    if count == prompt > policy.budget + policy.observed:
        for layer in model.layers:
            votes = sum(each[:, :before] for each in layer.last[before:])
            pooled = torch.nn.functional.avg_pool1d(votes, policy.pooling, 1, policy.pooling // 2)  # type: ignore[arg-type]
            best = pooled.topk(policy.budget, -1).indices.sort(-1).values
            layer.keep(torch.cat([best, torch.arange(before, prompt).expand(len(best), -1)], 1))


def keep_heavy(policy: HeavyHitters, model: PrunedModel, prompt: int, count: int) -> None:
    """H2O, at the prompt's end and when a block's worth of tokens has come on top."""
    for layer in model.layers:
        cached, most = layer.k.shape[1], policy.heavy + policy.recent
        if (count == prompt and cached > most) or (count > prompt and cached == most + SIZE):
            first = cached - policy.recent
            best = layer.mass[:, :first].topk(policy.heavy, -1).indices.sort(-1).values
            layer.keep(torch.cat([best, torch.arange(first, cached).expand(len(best), -1)], 1))


Keep = Callable[[Any, PrunedModel, int, int], None]
CASES = [
    pytest.param(StreamingLLM(sinks=4, window=20), keep_window, 50, id="streaming, prompt above the window"),
    pytest.param(StreamingLLM(sinks=4, window=20), keep_window, 6, id="streaming, short prompt"),
    pytest.param(StreamingLLM(sinks=9, window=1), keep_window, 33, id="streaming, no window"),
    pytest.param(StreamingLLM(sinks=0, window=16), keep_window, 40, id="streaming, no sinks"),
    pytest.param(SnapKV(budget=13, observed=7, pooling=5), keep_observed, 60, id="snapkv"),
    pytest.param(SnapKV(budget=16, observed=8, pooling=1), keep_observed, 25, id="snapkv, one token dropped"),
    pytest.param(HeavyHitters(heavy=11, recent=9), keep_heavy, 50, id="h2o, long prompt"),
    pytest.param(HeavyHitters(heavy=8, recent=16), keep_heavy, 9, id="h2o, short prompt"),
]


@pytest.mark.parametrize(("policy", "keep", "length"), CASES)
def test_tokens_are_those_of_the_paper(
    reference: LlamaForCausalLM, make_engine: MakeEngine, policy: KvPolicy, keep: Keep, length: int
) -> None:
    prompt = some_prompt(length)
    (output,) = run(make_engine(block_size=SIZE, with_tokenizer=False), [prompt], params(policy, max_tokens=50))
    (sample,) = output.outputs
    (dense,) = run(make_engine(block_size=SIZE, with_tokenizer=False), [prompt], params(None, max_tokens=50))
    model = PrunedModel(reference, by_place=isinstance(policy, StreamingLLM))
    assert sample.logprobs is not None
    assert dense.outputs[0].logprobs != sample.logprobs
    found = None
    for i, token in enumerate([*prompt, *sample.token_ids]):
        if i >= length:
            assert found is not None
            told = sample.logprobs[i - length][token]
            assert found[token].item() == pytest.approx(told.logprob, abs=2e-4), f"token {i - length} of the output"
            assert found.argmax() == token
        found = model.feed(token)
        keep(policy, model, length, i + 1)


def bits(outputs: list[RequestOutput]) -> list[Any]:
    assert not any(each.error for each in outputs)
    return [[(s.token_ids, s.logprobs) for s in each.outputs] for each in outputs]


POLICIES = [
    StreamingLLM(sinks=4, window=20),
    SnapKV(budget=9, observed=6, pooling=3),
    HeavyHitters(heavy=7, recent=12),
    StreamingLLM(sinks=12, window=9),
    None,
]
PROMPTS = [(some_prompt(20, 99) if i % 2 else []) + some_prompt(1 + 13 * i % 70, i) for i in range(18)]
PARAMS = [
    params(POLICIES[i % len(POLICIES)], temperature=0.8 * (i % 4 == 1), seed=i, max_tokens=30 + i) for i in range(18)
]


@pytest.fixture(scope="module", params=["auto", "float16", "int8", "int4"])
def alone(request: pytest.FixtureRequest, decoder: Decoder) -> tuple[str, list[Any]]:
    """A KV cache's dtype, and what each request gives by itself."""
    config = EngineConfig(num_kv_blocks=64, block_size=SIZE, enable_prefix_caching=False, kv_cache_dtype=request.param)
    engine = Engine(decoder, None, config)
    return request.param, bits([run(engine, [p], s)[0] for p, s in zip(PROMPTS, PARAMS, strict=True)])


@pytest.mark.parametrize(
    "config",
    [
        {"num_kv_blocks": 400},
        {"num_kv_blocks": 400, "max_num_batched_tokens": 7, "max_num_seqs": 4},
        {"num_kv_blocks": 24, "max_num_batched_tokens": 64, "predict_lengths": False},
        {"num_kv_blocks": 24, "enable_prefix_caching": False, "max_num_batched_tokens": 30, "predict_lengths": False},
    ],
    ids=str,
)
def test_a_batch_changes_no_bit(make_engine: MakeEngine, alone: tuple[str, list[Any]], config: dict[str, Any]) -> None:
    dtype, expected = alone
    engine = make_engine(block_size=SIZE, with_tokenizer=False, kv_cache_dtype=dtype, **config)
    assert bits(run(engine, PROMPTS, PARAMS)) == expected
    assert (engine.metrics.preemptions > 0) == (config["num_kv_blocks"] == 24)


@pytest.mark.parametrize("policy", POLICIES[:3], ids=str)
def test_samples_of_a_prompt_are_those_of_requests_of_their_own(make_engine: MakeEngine, policy: KvPolicy) -> None:
    prompt = some_prompt(61)
    engine = make_engine(block_size=SIZE, with_tokenizer=False)
    (together,) = run(engine, [prompt], params(policy, n=3, seed=7, temperature=1.0))
    apart = run(engine, [prompt] * 3, [params(policy, seed=7 + i, temperature=1.0) for i in range(3)])
    assert bits([together])[0] == [bits([each])[0][0] for each in apart]


def test_what_is_dropped_is_free_at_once(make_engine: MakeEngine) -> None:
    """Of 160 tokens, 20 blocks, the sinks' block stays, its turned copy, and the four blocks of a window of 26."""
    engine = make_engine(block_size=SIZE, with_tokenizer=False, enable_prefix_caching=False)
    engine.add_request("one", some_prompt(160), params(StreamingLLM(sinks=4, window=26), max_tokens=60))
    engine.step()
    assert engine.num_kv_blocks_used == 2 + 4
    most = 0
    while engine.has_unfinished():
        engine.step()
        engine.check_integrity()
        most = max(most, engine.num_kv_blocks_used)
    assert most <= 2 + 5
    assert engine.num_kv_blocks_used == 0


GATHERED = pytest.mark.parametrize(
    "policy", [SnapKV(budget=40, observed=6), HeavyHitters(heavy=26, recent=20)], ids=str
)


@GATHERED
@pytest.mark.parametrize("dtype", ["auto", "int4"])
def test_a_gathering_needs_no_more_blocks_than_it_finds(make_engine: MakeEngine, policy: KvPolicy, dtype: str) -> None:
    """The pool holds the prompts, a spare block for each, and no six blocks more for what is kept of the first."""
    prompts, asked = [some_prompt(61), some_prompt(20)], [params(policy, max_tokens=8), params(None, max_tokens=8)]
    config: dict[str, Any] = {"block_size": SIZE, "with_tokenizer": False, "kv_cache_dtype": dtype}
    expected = bits(run(make_engine(**config), prompts, asked))
    engine = make_engine(**config, num_kv_blocks=8 + 3 + 2)
    assert bits(run(engine, prompts, asked)) == expected
    assert engine.metrics.preemptions == 0
    alone = make_engine(**config, num_kv_blocks=9)  # as many as without a policy
    assert bits(run(alone, prompts[:1], asked[:1])) == expected[:1]


@GATHERED
def test_what_others_hold_too_is_not_gathered_in_place(make_engine: MakeEngine, policy: KvPolicy) -> None:
    """Two requests of one prompt, with and without a policy, in a pool in which one has to wait for the other."""
    prompt = some_prompt(61)
    asked = [params(policy, max_tokens=30), params(None, max_tokens=30), params(policy, max_tokens=30, n=2, seed=1)]
    config: dict[str, Any] = {"block_size": SIZE, "with_tokenizer": False}
    expected = bits(run(make_engine(**config, enable_prefix_caching=False), [prompt] * 3, asked))
    for blocks in (12, 14, 18, 24):
        engine = make_engine(**config, num_kv_blocks=blocks, predict_lengths=False)
        assert bits(run(engine, [prompt] * 3, asked)) == expected


def test_later_gatherings_take_no_blocks_from_the_prefix_cache(make_engine: MakeEngine) -> None:
    engine = make_engine(block_size=SIZE, with_tokenizer=False, num_kv_blocks=20)
    run(engine, [some_prompt(40)], params(None, max_tokens=1))
    run(engine, [some_prompt(60)], params(HeavyHitters(heavy=26, recent=20), max_tokens=60))
    assert run(engine, [some_prompt(40)], params(None, max_tokens=1))[0].num_cached_tokens == 39


@pytest.mark.parametrize("policy", POLICIES[:3], ids=str)
def test_a_dense_request_never_finds_what_a_pruned_one_has_computed(make_engine: MakeEngine, policy: KvPolicy) -> None:
    """The second's prompt is the first's with its output: only what came before the first pruning may be shared."""
    engine, fresh = (make_engine(block_size=SIZE, with_tokenizer=False) for _ in range(2))
    prompt = some_prompt(64)
    (pruned,) = run(engine, [prompt], params(policy, max_tokens=60))
    longer = [*prompt, *pruned.outputs[0].token_ids]
    (after,) = run(engine, [longer], params(None))
    assert after.num_cached_tokens == len(prompt)
    assert bits([after]) == bits(run(fresh, [longer], params(None)))
    (again,) = run(engine, [prompt], params(policy, max_tokens=60))  # it may share what is dense itself
    shared = {"streaming_llm": len(prompt) - 1, "snapkv": len(prompt) - 6, "heavy_hitters": 0}
    assert again.num_cached_tokens == shared[policy.type]
    assert bits([again]) == bits([pruned])


def test_an_aborted_request_returns_all_its_blocks(make_engine: MakeEngine) -> None:
    engine = make_engine(block_size=SIZE, with_tokenizer=False)
    engine.add_request("one", some_prompt(60), params(StreamingLLM(window=16), n=2, seed=1, temperature=1.0))
    for _ in range(20):
        engine.step()
    assert engine.num_kv_blocks_used > 0
    engine.abort("one")
    engine.check_integrity()
    assert engine.num_kv_blocks_used == 0


def test_prompt_logprobs_are_those_of_full_attention(make_engine: MakeEngine) -> None:
    engine = make_engine(block_size=SIZE, with_tokenizer=False)
    asked = [params(policy, prompt_logprobs=1) for policy in (StreamingLLM(window=16), None)]
    pruned, dense = run(engine, [some_prompt(60)] * 2, asked)
    assert pruned.prompt_logprobs == dense.prompt_logprobs


def test_a_pool_that_is_too_small_is_refused_with_the_numbers(make_engine: MakeEngine) -> None:
    engine = make_engine(block_size=SIZE, with_tokenizer=False, num_kv_blocks=16)
    many = StreamingLLM(sinks=40, window=40)
    run(engine, [some_prompt(20)], params(many, max_tokens=20))  # never as long as to be pruned
    with pytest.raises(
        ValueError, match=r"^kv_policy: .*sinks=40.* needs up to 16 KV blocks of 8 .*, but 15 are there"
    ):
        make_engine(block_size=SIZE, with_tokenizer=False, num_kv_blocks=15).add_request(
            "one", some_prompt(90), params(many, max_tokens=20)
        )
    run(engine, [some_prompt(90)], params(many, max_tokens=20))


def test_models_with_sliding_windows_are_refused(tmp_path: Path, make_engine: MakeEngine) -> None:
    config = MistralConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        sliding_window=16,
        max_position_embeddings=128,
    )
    MistralForCausalLM(config).save_pretrained(tmp_path)
    engine = make_engine(load_model(tmp_path, skip_tokenizer=True).decoder, with_tokenizer=False, num_kv_blocks=16)
    with pytest.raises(ValueError, match=r"^kv_policy: expected none, since the model has sliding windows"):
        engine.add_request("one", [1, 2], params(StreamingLLM()))


def test_a_model_whose_table_is_scaled_turns_keys_without_scaling(
    reference: LlamaForCausalLM, tmp_path: Path, make_engine: MakeEngine
) -> None:
    """YaRN's attention factor is in the keys once already: turned by the table as it is they would have it twice."""
    from pybatch.engine.execution.kv_cache import KvCache
    from pybatch.engine.execution.kv_pruner import KvPruner
    from pybatch.engine.scheduling.pruning import Turned

    engine = make_engine(with_tokenizer=False, num_kv_blocks=2)
    cache: KvCache = engine._kv_cache
    decoder, rotary = copy(engine.decoder), engine.decoder.rotary
    found = []
    for factor in (1.0, 1.25):
        for layer in cache.layers:
            layer.k[0] = torch.linspace(-1, 1, layer.k[0].numel()).view_as(layer.k[0])
        decoder.rotary = {rope: table * factor for rope, table in rotary.items()}
        KvPruner(cache, decoder, engine._pruner.mass)._turn(Turned([(0, 1)], 7))
        found.append(cache.layers[1].k[1].clone())
    torch.testing.assert_close(found[0], found[1])
