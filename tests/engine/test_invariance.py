"""Rule 1 through the whole engine: a request's tokens and log-probabilities are the same bits in any company."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from engine.fuzz import PRECISIONS as FUZZED
from engine.fuzz import alone, check_random_arrivals, check_random_batch
from engine.runs import MakeEngine, drain, run, some_prompt

from pybatch import ops
from pybatch.engine import Engine, EngineConfig, RequestOutput, SamplingParams
from pybatch.engine.learned_costs import LearnedCosts
from pybatch.engine.scheduling.step import Step
from pybatch.engine.scheduling.target_budget import TargetBudget
from pybatch.engine.standing import Standing
from pybatch.model import Decoder, load_model

SHARED = some_prompt(40, 99)  # half of the prompts begin with the same two and a half blocks
PROMPTS = [(SHARED if i % 2 else []) + some_prompt(1 + 7 * i % 90, i) for i in range(64)]
PARAMS = [
    SamplingParams(
        temperature=0.0 if i % 3 == 0 else 0.9,
        top_p=0.95 if i % 3 == 1 else 1.0,
        repetition_penalty=1.1 if i % 4 == 0 else 1.0,
        max_tokens=20 + i % 40,
        ignore_eos=True,
        logprobs=2,
        seed=i,
    )
    for i in range(64)
]

# A tenth of the blocks that all would use at once.
TENTH = (
    sum(-(-(len(prompt) + (params.max_tokens or 0)) // 16) for prompt, params in zip(PROMPTS, PARAMS, strict=True))
    // 10
)

Bits = list[tuple[list[int], Any]]


def bits(outputs: list[RequestOutput]) -> Bits:
    assert not any(output.error for output in outputs)
    return [(output.outputs[0].token_ids, output.outputs[0].logprobs) for output in outputs]


DEVICES = ["cpu", "cuda"] if ops.CUDA else ["cpu"]
PRECISIONS = [("float32", None, "auto"), ("auto", "int8", "int8"), ("auto", "int8", "int4"), ("auto", "int8", "auto")]


@pytest.fixture(scope="module", params=[(device, *each) for device in DEVICES for each in PRECISIONS], ids=str)
def model(request: pytest.FixtureRequest, model_path: Path) -> tuple[Decoder, str]:
    """A decoder, and the dtype of its KV cache."""
    device, dtype, quantization, kv_cache_dtype = request.param
    loaded = load_model(model_path, dtype=dtype, quantization=quantization, device=device, skip_tokenizer=True)
    return loaded.decoder, kv_cache_dtype


@pytest.fixture(scope="module")
def expected(model: tuple[Decoder, str]) -> Bits:
    """Each request alone, its prompt in one piece, nothing cached."""
    decoder, kv_cache_dtype = model
    config = EngineConfig(num_kv_blocks=64, enable_prefix_caching=False, kv_cache_dtype=kv_cache_dtype)
    engine = Engine(decoder, None, config)
    return bits([run(engine, [prompt], params)[0] for prompt, params in zip(PROMPTS, PARAMS, strict=True)])


@pytest.mark.parametrize(
    ("threads", "config"),
    [
        (1, {"max_num_seqs": 7}),
        (2, {"max_num_seqs": 7, "max_num_batched_tokens": 64, "enable_prefix_caching": False}),
        (1, {"max_num_seqs": 64, "max_num_batched_tokens": 16}),
        (1, {"max_num_seqs": 64, "max_num_batched_tokens": 64}),
        (2, {"max_num_seqs": 64, "max_num_batched_tokens": 4096}),
        (1, {"max_num_seqs": 64, "num_kv_blocks": TENTH, "predict_lengths": False}),
        (2, {"max_num_seqs": 64, "num_kv_blocks": TENTH, "predict_lengths": False, "enable_prefix_caching": False}),
    ],
    ids=str,
)
def test_a_batch_changes_no_bit(
    make_engine: MakeEngine, model: tuple[Decoder, str], expected: Bits, threads: int, config: dict[str, Any]
) -> None:
    decoder, kv_cache_dtype = model
    torch.set_num_threads(threads)
    engine = make_engine(decoder, with_tokenizer=False, kv_cache_dtype=kv_cache_dtype, **config)
    outputs = run(engine, PROMPTS, PARAMS)
    torch.set_num_threads(1)
    assert bits(outputs) == expected
    if "num_kv_blocks" in config:
        assert engine.metrics.preemptions > 0
    if config.get("enable_prefix_caching", True):
        assert engine.metrics.cached_tokens > 0


def test_the_order_of_requests_changes_no_bit(
    make_engine: MakeEngine, model: tuple[Decoder, str], expected: Bits
) -> None:
    decoder, kv_cache_dtype = model
    order = torch.randperm(64, generator=torch.Generator().manual_seed(1)).tolist()
    engine = make_engine(decoder, with_tokenizer=False, kv_cache_dtype=kv_cache_dtype)
    for _ in range(2):  # the second time over, from cached prefixes
        assert bits(run(engine, PROMPTS, PARAMS, order)) == expected


def test_joining_a_running_batch_changes_no_bit(
    make_engine: MakeEngine, model: tuple[Decoder, str], expected: Bits
) -> None:
    decoder, kv_cache_dtype = model
    engine = make_engine(decoder, with_tokenizer=False, kv_cache_dtype=kv_cache_dtype)
    found: dict[str, RequestOutput] = {}
    for i, (prompt, params) in enumerate(zip(PROMPTS, PARAMS, strict=True)):
        engine.add_request(str(i), prompt, params)
        found.update((output.request_id, output) for output in engine.step())
    while engine.has_unfinished():
        found.update((output.request_id, output) for output in engine.step())
    assert bits([found[str(i)] for i in range(64)]) == expected


class ConstantCosts(TargetBudget):
    """10 ms a step and 1 ms a prompt's token."""

    def observe(self, decodes: int, step: Step, seconds: float) -> None:
        self._costs = LearnedCosts((0.010, 0.0, 0.001, 0.0), (0.0,) * 4)


def test_targets_change_no_bit(make_engine: MakeEngine, model: tuple[Decoder, str], expected: Bits) -> None:
    """Prompts beside those that decode are computed in pieces of 35 tokens for them, not of 448."""
    decoder, kv_cache_dtype = model
    engine = make_engine(decoder, with_tokenizer=False, kv_cache_dtype=kv_cache_dtype, enable_prefix_caching=False)
    engine._targets = ConstantCosts(engine.config.max_num_batched_tokens)
    engine._new_schedule()
    paced = Standing(tpot_target=0.05)
    engine.add_request("0", PROMPTS[0], PARAMS[0], standing=paced)
    outputs = {output.request_id: output for _ in range(2) for output in engine.step()}
    for i in range(1, 64):
        engine.add_request(str(i), PROMPTS[i], PARAMS[i], index=i, standing=paced)
    outputs |= {output.request_id: output for output in drain(engine)}
    assert bits([outputs[str(i)] for i in range(64)]) == expected
    assert engine.metrics.step_size.quantile(1) <= 64 + 36


@pytest.mark.parametrize("precision", FUZZED, ids=str)
def test_random_batches_change_no_bit(tiny_model: Path, precision: tuple[str | None, str]) -> None:
    reference = alone(tiny_model, *precision)
    for seed in range(15):
        check_random_batch(reference, seed)
    assert sum(check_random_arrivals(reference, seed) for seed in range(12)) > 0
