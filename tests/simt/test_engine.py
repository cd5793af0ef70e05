"""A whole model on the CUDA kernels: prefill, chunked prefill and decode in one batch, through the engine."""

from __future__ import annotations

from pathlib import Path

import pytest
from engine.runs import run, some_prompt
from model.paged import logits_of

import pybatch.ops
from pybatch.engine import Engine, EngineConfig, Logprob, SamplingParams
from pybatch.engine.config import KvCacheDType
from pybatch.engine.execution.decode_graphs import DecodeGraphs
from pybatch.engine.kv_policies import HeavyHitters, KvPolicy, SnapKV, StreamingLLM
from pybatch.model import load_model, weights
from simt.device import SimtOps
from simt.suites import OPS

KERNELS = [name for name in vars(SimtOps) if not name.startswith("_")]
PRECISIONS = [("float32", None), ("bfloat16", None), ("bfloat16", "int8"), ("float16", "int8-weight-only")]


@pytest.fixture
def cuda_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in KERNELS:
        monkeypatch.setattr(pybatch.ops, name, getattr(OPS, name))
    matmuls = {name: getattr(OPS, matmul.__name__) for name, matmul in weights.INT8_MATMULS.items()}
    monkeypatch.setattr(weights, "INT8_MATMULS", matmuls)
    monkeypatch.setattr(
        DecodeGraphs, "takes", staticmethod(lambda chunks: False)
    )  # a CPU's graph records the CPU's kernels alone


@pytest.mark.parametrize(("dtype", "quantization"), PRECISIONS)
def test_logits_are_the_cpus(
    tiny_model: Path, request: pytest.FixtureRequest, dtype: str, quantization: str | None
) -> None:
    ids = some_prompt(70, vocab=250)
    wanted = logits_of(load_model(tiny_model, dtype="float32", skip_tokenizer=True).decoder, ids)
    request.getfixturevalue("cuda_kernels")
    decoder = load_model(tiny_model, dtype=dtype, quantization=quantization, skip_tokenizer=True).decoder
    error = (logits_of(decoder, ids, [33, 1, 36]) - wanted).norm() / wanted.norm()
    assert error < (1e-5 if dtype == "float32" else 0.08)


@pytest.mark.usefixtures("cuda_kernels")
@pytest.mark.parametrize("kv_cache_dtype", ["auto", "int4"])
def test_a_batch_changes_no_bit(tiny_model: Path, kv_cache_dtype: KvCacheDType) -> None:
    decoder = load_model(tiny_model, dtype="bfloat16", quantization="int8", skip_tokenizer=True).decoder
    prompts = [some_prompt(length, vocab=250) for length in (3, 40, 17)]
    params = [SamplingParams(temperature=t, max_tokens=4, ignore_eos=True, logprobs=1, seed=1) for t in (0, 0.9, 0.9)]

    def outputs(together: bool) -> list[object]:
        config = EngineConfig(
            num_kv_blocks=12, max_num_batched_tokens=24, enable_prefix_caching=False, kv_cache_dtype=kv_cache_dtype
        )
        engine = Engine(decoder, None, config)
        if together:
            found = run(engine, prompts, params)
        else:
            found = [run(engine, [prompt], each)[0] for prompt, each in zip(prompts, params, strict=True)]
        engine.check_integrity()
        return [(output.outputs[0].token_ids, output.outputs[0].logprobs) for output in found]

    assert outputs(together=True) == outputs(together=False)


POLICIES = [
    StreamingLLM(sinks=4, window=11),
    SnapKV(budget=9, observed=5, pooling=3),
    HeavyHitters(heavy=7, recent=9),
]


@pytest.mark.parametrize("kv_cache_dtype", ["bfloat16", "int4"])
def test_pruned_requests_are_the_cpus_and_have_the_same_bits_in_a_batch(
    tiny_model: Path, request: pytest.FixtureRequest, kv_cache_dtype: KvCacheDType
) -> None:
    """The pool is too small for all, so that some are preempted, and blocks are shared and gathered in place."""
    decoder = load_model(tiny_model, dtype="float32", skip_tokenizer=True).decoder
    policies: list[KvPolicy | None] = [*POLICIES, None, POLICIES[1]]
    prompts = [some_prompt(40, vocab=250) if i else some_prompt(21, vocab=250) for i in range(5)]
    params = [SamplingParams(temperature=0, max_tokens=12, logprobs=1, ignore_eos=True, kv_policy=p) for p in policies]

    def outputs(together: bool) -> list[tuple[list[int], list[dict[int, Logprob]]]]:
        config = EngineConfig(
            block_size=8,
            num_kv_blocks=15,
            max_num_batched_tokens=24,
            enable_prefix_caching=together,
            predict_lengths=False,
            kv_cache_dtype=kv_cache_dtype,
        )
        engine = Engine(decoder, None, config)
        if together:
            found = run(engine, prompts, params)
        else:
            found = [run(engine, [prompt], each)[0] for prompt, each in zip(prompts, params, strict=True)]
        engine.check_integrity()
        assert (engine.metrics.preemptions > 0) == together
        return [(output.outputs[0].token_ids, output.outputs[0].logprobs or []) for output in found]

    wanted = outputs(together=False)
    request.getfixturevalue("cuda_kernels")
    alone = outputs(together=False)
    assert outputs(together=True) == alone
    for (tokens, logprobs), (cpus, cpus_logprobs) in zip(alone, wanted, strict=True):
        assert tokens == cpus
        for token, mine, theirs in zip(tokens, logprobs, cpus_logprobs, strict=True):
            assert mine[token].logprob == pytest.approx(theirs[token].logprob, abs=0.03)
