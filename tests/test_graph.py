"""A graph of CPU ops: recorded once, it computes again from what its tensors hold by then."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest
import torch
from engine.runs import run, some_prompt
from torch import Tensor

from pybatch import ops
from pybatch.engine import Engine, EngineConfig, SamplingParams
from pybatch.engine.execution.decode_graphs import DecodeGraphs
from pybatch.model import load_model

Graph = ops.CpuGraph


def test_ops_are_recorded_not_run_and_replayed_on_the_values_of_the_day() -> None:
    x, out, weight = torch.randn(3, 32), torch.zeros(3, 40), ops.pack_dense(torch.randn(40, 32))
    normed, graph = torch.zeros(3, 32), Graph()
    norm = torch.rand(32)
    with graph:
        ops.rms_norm(x, norm, 1e-5, out=normed)
        ops.matmul_dense(normed, weight, out=out)
    assert not out.any()
    for _ in range(3):
        x.normal_()
        graph.replay()
        expected = ops.matmul_dense(ops.rms_norm(x, norm, 1e-5), weight, out=torch.empty(3, 40))
        assert torch.equal(out, expected)


def test_a_graph_keeps_its_tensors() -> None:
    def record() -> tuple[Graph, Tensor]:
        graph, out = Graph(), torch.empty(100, 1000)
        with graph:
            ops.silu_mul(torch.full((100, 2000), 2.0), out)
        return graph, out

    graph, out = record()
    gc.collect()
    others = [torch.full((100, 2000), -7.0) for _ in range(20)]  # where the input would be, had it been freed
    graph.replay()
    assert torch.equal(out, ops.silu_mul(torch.full((100, 2000), 2.0)))
    assert len(others) == 20


def test_an_error_ends_the_recording() -> None:
    graph = Graph()
    with pytest.raises(RuntimeError, match="weight: expected"), graph:
        ops.rms_norm(torch.ones(2, 8), torch.ones(7), 1e-5)
    assert ops.rms_norm(torch.ones(2, 8), torch.ones(8), 0.0).eq(1).all()


def test_one_graph_records_at_a_time() -> None:
    with Graph(), pytest.raises(RuntimeError, match="being recorded already"), Graph():
        pass
    assert ops.rms_norm(torch.ones(2, 8), torch.ones(8), 0.0).eq(1).all()


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("quantization", [None, "int8"])
def test_replayed_steps_have_the_bits_of_eager_ones(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch, quantization: str | None, threads: int
) -> None:
    decoder = load_model(tiny_model, quantization=quantization, skip_tokenizer=True).decoder
    prompts = [some_prompt(1 + 11 * i, vocab=250) for i in range(20)]
    params = [SamplingParams(temperature=0, max_tokens=10 + 5 * i, ignore_eos=True, logprobs=1) for i in range(20)]

    def outputs() -> list[object]:
        engine = Engine(decoder, None, EngineConfig(num_kv_blocks=512))
        return [(output.outputs[0].token_ids, output.outputs[0].logprobs) for output in run(engine, prompts, params)]

    monkeypatch.setattr(DecodeGraphs, "takes", staticmethod(lambda chunks: False))
    eager = outputs()
    monkeypatch.undo()
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        assert outputs() == eager
    finally:
        torch.set_num_threads(before)
