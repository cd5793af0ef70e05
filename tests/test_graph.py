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


def test_a_graph_keeps_the_pools_and_pairs_of_swap_blocks() -> None:
    def record() -> tuple[Graph, Tensor]:
        graph, dst = Graph(), torch.zeros(2, 1 << 20, dtype=torch.uint8)
        with graph:
            ops.swap_blocks(torch.full((2, 1 << 20), 5, dtype=torch.uint8), dst, torch.tensor([[0, 1]]))
        return graph, dst

    graph, dst = record()
    gc.collect()
    graph.replay()
    assert dst[1].eq(5).all()
    assert not dst[0].any()


def test_a_graph_keeps_a_storage_whose_tensor_is_given_another() -> None:
    x, out, graph = torch.full((100, 2000), 2.0), torch.empty(100, 1000), Graph()
    with graph:
        ops.silu_mul(x, out)
    x.set_(torch.zeros(1))
    graph.replay()
    assert torch.equal(out, ops.silu_mul(torch.full((100, 2000), 2.0)))


@pytest.mark.parametrize("argument", ["x", "out", "weight"])
@pytest.mark.parametrize("size", [0, 64, 1 << 24])
def test_a_resized_storage_is_an_error_that_names_the_argument(argument: str, size: int) -> None:
    tensors, graph = {"x": torch.ones(3, 32), "out": torch.zeros(3, 32), "weight": torch.ones(32)}, Graph()
    with graph:
        ops.rms_norm(tensors["x"], tensors["weight"], 1e-5, out=tensors["out"])
    tensors[argument].untyped_storage().resize_(size)
    with pytest.raises(RuntimeError, match=f"^{argument}: expected the memory that it had at the recording"):
        graph.replay()


class Step:
    """A small decode step: embedding, rope_kv_write, attention, and what is computed of it."""

    def __init__(self) -> None:
        self.ids, self.positions, self.slots = (torch.tensor(x) for x in ([3, 1], [4, 0], [4, 8]))
        self.block_tables = torch.tensor([[0, 2], [1, 3]], dtype=torch.int32)
        self.query_start = torch.tensor([0, 1, 2], dtype=torch.int32)
        self.seq_lens = torch.tensor([5, 1], dtype=torch.int32)
        self.k_cache, self.v_cache = torch.zeros(4, 1, 8, 8), torch.zeros(4, 1, 8, 8)
        self.table, self.rotary = torch.rand(5, 8), torch.rand(20, 8)
        self.q, self.out = torch.zeros(2, 8), torch.zeros(2, 8)
        self.graph = Graph()
        with self.graph:
            ops.embedding(self.ids, self.table, self.q, 5)
            caches = (self.k_cache, self.v_cache)
            ops.rope_kv_write(self.q, self.q.clone(), self.q, self.positions, self.slots, self.rotary, *caches)
            batch = (self.block_tables, self.query_start, self.seq_lens)
            ops.paged_attention(self.q, *caches, *batch, 1.0, out=self.out)

    def written(self) -> list[Tensor]:
        return [self.q, self.out, self.k_cache, self.v_cache]


@pytest.mark.parametrize(
    ("argument", "at", "value", "message"),
    [
        ("ids", 1, 5, r"ids: expected ids in \[0, 5\), got 5 at 1"),
        ("ids", 0, -(2**63), r"ids: expected ids in \[0, 5\)"),
        ("positions", 0, 20, r"positions: expected ids in \[0, 20\), got 20 at 0"),
        ("slots", 1, 2**40, "slots: expected below 32, got 1099511627776 at 1"),
        ("block_tables", (0, 0), 4, r"block_tables: expected blocks in \[0, 4\), got 4 in sequence 0"),
        ("block_tables", (1, 0), -1, r"block_tables: expected blocks in \[0, 4\), got -1 in sequence 1"),
        ("seq_lens", 0, 17, "block_tables: expected at least 3 columns for sequence 0, got 2"),
        ("seq_lens", 1, -5, "seq_lens: expected at least the 1 queries of sequence 1, got -5"),
        ("query_start", 2, 3, "query_start: expected to begin with 0 and end with 2"),
    ],
)
def test_an_illegal_value_at_replay_is_an_error_and_nothing_is_run(
    argument: str, at: object, value: int, message: str
) -> None:
    step = Step()
    step.graph.replay()
    before = [tensor.clone() for tensor in step.written()]
    legal = getattr(step, argument).clone()
    step.table.add_(1)
    getattr(step, argument)[at] = value
    with pytest.raises(RuntimeError, match=f"^{message}"):
        step.graph.replay()
    assert all(torch.equal(*pair) for pair in zip(step.written(), before, strict=True))
    getattr(step, argument).copy_(legal)
    step.graph.replay()
    assert not torch.equal(step.out, before[1])


def test_values_that_a_recorded_op_writes_are_checked_when_they_are_there() -> None:
    logits, tokens, out, graph = torch.zeros(1, 8), torch.full((1,), -7), torch.zeros(1, 4), Graph()
    zero, one, ids, table = torch.zeros(1), torch.ones(1), torch.zeros(1, dtype=torch.int64), torch.rand(5, 4)
    with graph:
        torch.ops.pybatch.sample(logits, zero, ids, one, zero, ids, ids, None, None, tokens)
        ops.embedding(tokens, table, out, 5)
    logits[0, 4] = 1
    graph.replay()
    assert torch.equal(out, table[4:])
    logits[0, 6] = 2
    with pytest.raises(RuntimeError, match=r"^ids: expected ids in \[0, 5\), got 6 at 0"):
        graph.replay()
    assert torch.equal(out, table[4:])


def test_an_error_ends_the_recording() -> None:
    graph, out = Graph(), torch.zeros(2, 8)
    with graph:
        ops.rms_norm(torch.ones(2, 8), torch.ones(8), 1e-5, out=out)
    with pytest.raises(RuntimeError, match="weight: expected"), graph:
        ops.rms_norm(torch.ones(2, 8), torch.ones(7), 1e-5)
    assert ops.rms_norm(torch.ones(2, 8), torch.ones(8), 0.0).eq(1).all()
    graph.replay()
    assert not out.any()  # half a recording is not run


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
