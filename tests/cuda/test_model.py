"""A model on a GPU: what it computes is what the CPU does, within rounding, and its decode steps are graph replays."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from engine.runs import run, some_prompt
from model.paged import logits_of

from pybatch import ops
from pybatch.engine import Engine, EngineConfig, SamplingParams
from pybatch.engine.execution.model_runner import ModelRunner
from pybatch.model import load_model

pytestmark = pytest.mark.skipif(not ops.CUDA, reason="needs a GPU, and pybatch built with CUDA")

PRECISIONS = [("float32", None, 1e-4), ("float32", "int8-weight-only", 1e-4), ("bfloat16", None, 0.03)]


@pytest.mark.parametrize(("dtype", "quantization", "tolerance"), PRECISIONS)
def test_logits_are_the_cpus(tiny_model: Path, dtype: str, quantization: str | None, tolerance: float) -> None:
    cpu, gpu = (
        load_model(tiny_model, dtype=dtype, quantization=quantization, device=device, skip_tokenizer=True).decoder
        for device in ("cpu", "cuda")
    )
    ids = some_prompt(300, vocab=250)
    wanted = logits_of(cpu, ids)
    error = (logits_of(gpu, ids, [100, 150, 1, 49]) - wanted).norm() / wanted.norm()
    assert error < tolerance


@pytest.mark.parametrize(("quantization", "kv_cache_dtype"), [(None, "auto"), ("int8", "int8"), (None, "fp8")])
def test_replayed_steps_have_the_bits_of_eager_ones(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch, quantization: str | None, kv_cache_dtype: str
) -> None:
    decoder = load_model(tiny_model, quantization=quantization, device="cuda", skip_tokenizer=True).decoder
    prompts = [some_prompt(1 + 11 * i, vocab=250) for i in range(20)]
    params = [SamplingParams(temperature=0, max_tokens=10 + 5 * i, ignore_eos=True, logprobs=1) for i in range(20)]

    def outputs() -> list[object]:
        engine = Engine(decoder, None, EngineConfig(num_kv_blocks=512, kv_cache_dtype=kv_cache_dtype))
        return [(output.outputs[0].token_ids, output.outputs[0].logprobs) for output in run(engine, prompts, params)]

    replayed = outputs()
    monkeypatch.setattr("pybatch.engine.execution.decode_graphs.DecodeGraphs.takes", staticmethod(lambda chunks: False))
    assert outputs() == replayed


def test_an_engine_sees_the_gpus_memory(tiny_model: Path) -> None:
    decoder = load_model(tiny_model, device="cuda", skip_tokenizer=True).decoder
    before = torch.cuda.mem_get_info()[0]
    engine = Engine(decoder, None, EngineConfig(memory_utilization=0.1, max_num_seqs=4096))
    assert engine.kv_cache_bytes <= before
    assert engine.kv_cache_bytes > 0


def test_nothing_is_captured_in_service(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches beyond the largest graph run eagerly."""
    decoder = load_model(tiny_model, device="cuda", skip_tokenizer=True).decoder
    prompts = [some_prompt(3 + i % 20, seed=i, vocab=250) for i in range(300)]
    params = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)
    free = torch.cuda.mem_get_info()[0]
    engine = Engine(decoder, None, EngineConfig(max_num_seqs=300, max_num_batched_tokens=4096, memory_utilization=0.5))
    assert engine.kv_cache_bytes < 0.5 * free
    monkeypatch.setattr(torch.cuda, "graph", None)
    tokens = [output.outputs[0].token_ids for output in run(engine, prompts, params)]
    alone = [run(engine, [prompt], params)[0].outputs[0].token_ids for prompt in prompts[::37]]
    assert tokens[::37] == alone


def test_steps_that_are_queued_ahead_give_the_same_answers(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = load_model(tiny_model, device="cuda", skip_tokenizer=True).decoder
    prompts = [some_prompt(3 + 7 * i % 60, seed=i, vocab=250) for i in range(40)]
    kinds: list[dict[str, Any]] = [
        {"temperature": 0, "logprobs": 1},
        {"temperature": 1.0, "top_p": 0.9, "n": 2},
        {"temperature": 0, "stop_token_ids": list(range(1, 60))},
        {"temperature": 0.8, "min_tokens": 5, "prompt_logprobs": 1},
    ]
    params = [SamplingParams(**{"max_tokens": 5 + i, "seed": i, **kinds[i % 4]}) for i in range(40)]

    def outputs() -> list[object]:
        config = EngineConfig(num_kv_blocks=40, max_num_seqs=12, max_num_batched_tokens=64, predict_lengths=False)
        engine = Engine(decoder, None, config)
        found = [(each.prompt_logprobs, each.outputs) for each in run(engine, prompts, params)]
        engine.check_integrity()
        return found

    by_steps = outputs()
    monkeypatch.setattr(ModelRunner, "is_ahead_of_device", True)
    assert outputs() == by_steps


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_another_device_than_the_current_one(tiny_model: Path) -> None:
    prompts, params = [some_prompt(20, vocab=250)] * 3, SamplingParams(temperature=0, max_tokens=20, ignore_eos=True)

    def tokens(device: str) -> list[list[int]]:
        decoder = load_model(tiny_model, device=device, skip_tokenizer=True).decoder
        engine = Engine(decoder, None, EngineConfig(num_kv_blocks=64))
        return [output.outputs[0].token_ids for output in run(engine, prompts, params)]

    assert tokens("cuda:1") == tokens("cuda:0") == tokens("cuda:1")
