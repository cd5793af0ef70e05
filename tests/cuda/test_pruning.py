"""Requests with a kv_policy on a GPU: what they are on a CPU, within rounding, and the same bits in any company."""

from __future__ import annotations

from pathlib import Path

import pytest
from engine.runs import run, some_prompt

from pybatch import ops
from pybatch.engine import Engine, EngineConfig, Logprob, SamplingParams
from pybatch.engine.config import KvCacheDType
from pybatch.engine.kv_policies import HeavyHitters, KvPolicy, SnapKV, StreamingLLM
from pybatch.model import Decoder, load_model

pytestmark = pytest.mark.skipif(not ops.CUDA, reason="needs a GPU, and pybatch built with CUDA")

POLICIES: list[KvPolicy | None] = [
    StreamingLLM(sinks=4, window=20),
    SnapKV(budget=30, observed=8, pooling=5),
    HeavyHitters(heavy=20, recent=12),
    None,
]
PROMPTS = [(some_prompt(70, vocab=250) if i % 2 else []) + some_prompt(5 + 9 * i, i, vocab=250) for i in range(12)]
PARAMS = [
    SamplingParams(temperature=0, max_tokens=40, logprobs=1, ignore_eos=True, kv_policy=POLICIES[i % 4])
    for i in range(12)
]
Outputs = list[tuple[list[int], list[dict[int, Logprob]]]]


def outputs(decoder: Decoder, kv_cache_dtype: KvCacheDType, *, together: bool, num_kv_blocks: int = 512) -> Outputs:
    config = EngineConfig(
        num_kv_blocks=num_kv_blocks,
        max_num_batched_tokens=64,
        kv_cache_dtype=kv_cache_dtype,
        enable_prefix_caching=together,
        predict_lengths=False,
    )
    engine = Engine(decoder, None, config)
    if together:
        found = run(engine, PROMPTS, PARAMS)
    else:
        found = [run(engine, [prompt], each)[0] for prompt, each in zip(PROMPTS, PARAMS, strict=True)]
    engine.check_integrity()
    assert (engine.metrics.preemptions > 0) == (num_kv_blocks < 512)
    return [(output.outputs[0].token_ids, output.outputs[0].logprobs or []) for output in found]


@pytest.mark.parametrize(
    ("dtype", "kv_cache_dtype"),
    [("float32", "float32"), ("bfloat16", "bfloat16"), ("bfloat16", "int8"), ("bfloat16", "int4"), ("float16", "fp8")],
)
def test_a_batch_changes_no_bit(tiny_model: Path, dtype: str, kv_cache_dtype: KvCacheDType) -> None:
    """Steps run as graphs, but for those that sum attention; alone, in a batch, and with preemptions."""
    decoder = load_model(tiny_model, dtype=dtype, device="cuda", skip_tokenizer=True).decoder
    alone = outputs(decoder, kv_cache_dtype, together=False)
    assert outputs(decoder, kv_cache_dtype, together=True) == alone
    assert outputs(decoder, kv_cache_dtype, together=True, num_kv_blocks=24) == alone


@pytest.mark.parametrize("kv_cache_dtype", ["float32", "int8", "int4"])
def test_tokens_are_the_cpus(tiny_model: Path, kv_cache_dtype: KvCacheDType) -> None:
    gpu, cpu = (
        outputs(
            load_model(tiny_model, dtype="float32", device=device, skip_tokenizer=True).decoder,
            kv_cache_dtype,
            together=False,
        )
        for device in ("cuda", "cpu")
    )
    same = 0
    for (tokens, logprobs), (cpus, cpus_logprobs) in zip(gpu, cpu, strict=True):
        for mine, theirs, token, other in zip(logprobs, cpus_logprobs, tokens, cpus, strict=True):
            # Where two tokens are as likely, or two as much looked at, rounding decides, and the rest is another text.
            if token != other or mine[token].logprob != pytest.approx(theirs[token].logprob, abs=0.05):
                break
            same += 1
    assert same > 0.9 * 12 * 40


def test_replayed_steps_have_the_bits_of_eager_ones(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = load_model(tiny_model, dtype="bfloat16", device="cuda", skip_tokenizer=True).decoder
    replayed = outputs(decoder, "auto", together=True)
    monkeypatch.setattr("pybatch.engine.execution.decode_graphs.DecodeGraphs.takes", staticmethod(lambda chunks: False))
    assert outputs(decoder, "auto", together=True) == replayed
