"""On a GPU, whose place the CPU takes here, decode steps are recorded before the engine serves."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import pytest
import torch
from engine.runs import MakeEngine, run, some_prompt

from pybatch.engine import SamplingParams
from pybatch.engine.execution import decode_graphs, graphs, kv_cache, model_runner, step_memory
from pybatch.engine.execution.graphs import CpuRecorder, CudaRecorder
from pybatch.model import Decoder
from pybatch.ops import CpuGraph

CPU = torch.device("cpu")
GRAPH_BYTES = 1 << 20


class Cuda:
    """Stands for torch.cuda: graphs are the CPU's, and each holds memory as long as it lives."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.recorded, self.pools, self.streams, self.free = 0, 0, 0, 1 << 30
        cuda = self

        class Graph:
            def __init__(self) -> None:
                self._graph = CpuGraph()
                cuda.free -= GRAPH_BYTES
                cuda.recorded += 1

            def __del__(self) -> None:
                cuda.free += GRAPH_BYTES

            def replay(self) -> None:
                self._graph.replay()

        @contextmanager
        def recording(graph: Graph, *, pool: int, stream: int, capture_error_mode: str) -> Iterator[None]:
            assert (pool, stream, capture_error_mode) == (self.pools, self.streams, "thread_local")
            with graph._graph:
                yield

        def pool() -> int:
            self.pools += 1
            return self.pools

        def stream(device: torch.device) -> int:
            assert device == CPU
            self.streams += 1
            return self.streams

        for name, fake in (
            ("graph_pool_handle", pool),
            ("Stream", stream),
            ("CUDAGraph", Graph),
            ("graph", recording),
            ("synchronize", lambda device: None),
        ):
            monkeypatch.setattr(torch.cuda, name, fake)
        for module in (decode_graphs, step_memory):
            monkeypatch.setattr(module, "recorder_for", CudaRecorder)
        for module in (kv_cache, step_memory):
            monkeypatch.setattr(module, "free_memory", lambda device: self.free)


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Cuda:
    return Cuda(monkeypatch)


def outputs(make_engine: MakeEngine, **config: Any) -> list[object]:
    prompts = [some_prompt(1 + 5 * i) for i in range(12)]
    params = [
        SamplingParams(temperature=i % 2, seed=i, max_tokens=3 + 2 * i, ignore_eos=True, logprobs=1) for i in range(12)
    ]
    found = run(make_engine(**config), prompts, params)
    return [(output.outputs[0].token_ids, output.outputs[0].logprobs) for output in found]


def test_all_are_recorded_at_the_start_in_one_pool_and_none_in_service(
    make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = outputs(make_engine)
    cuda = Cuda(monkeypatch)
    bars: list[list[Any]] = []

    @contextmanager
    def bar(title: str, total: int, show: bool | None) -> Iterator[Callable[[int], None]]:
        bars.append([title, total, 0])

        def advance(count: int) -> None:
            bars[-1][2] += count

        yield advance

    monkeypatch.setattr(model_runner, "progress_bar", bar)
    engine = make_engine(max_num_seqs=20)
    assert (cuda.recorded, cuda.pools, cuda.streams) == (6, 1, 1)  # of 1, 2, 4, 8, 16 and 20
    assert bars == [["Recording decode steps", 6, 6]]
    replays: list[int] = []
    original = Decoder.forward

    def forward(self: Decoder, batch: Any, caches: Any) -> torch.Tensor:
        replays.append(len(batch.token_ids) - len(batch.seq_lens))
        return original(self, batch, caches)

    monkeypatch.setattr(Decoder, "forward", forward)
    assert outputs(lambda **config: engine) == wanted
    assert replays
    assert all(replays)  # what runs eagerly is no step that decodes alone
    assert cuda.recorded == 6


def test_larger_batches_run_without_a_graph(
    make_engine: MakeEngine, cuda: Cuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decode_graphs, "recorder_for", lambda device: CpuRecorder())
    wanted = outputs(make_engine)
    monkeypatch.setattr(decode_graphs, "recorder_for", CudaRecorder)
    monkeypatch.setattr(graphs, "_SIZES", (1, 2, 4))
    assert outputs(make_engine) == wanted
    assert cuda.recorded == 3


@pytest.mark.parametrize(
    ("most", "last"), [(1, [1]), (3, [1, 2, 3]), (9, [4, 8, 9]), (256, [192, 224, 256]), (1000, [192, 224, 256])]
)
def test_sizes_are_few_and_end_with_the_largest_batch(cuda: Cuda, most: int, last: list[int]) -> None:
    sizes = CudaRecorder(CPU).sizes(most)
    assert sizes[-3:] == last
    assert sizes == sorted(set(sizes))
    assert len(sizes) < 20
    assert all(b <= 2 * a for a, b in pairwise(sizes))


def test_the_pool_leaves_room_for_graphs(make_engine: MakeEngine, cuda: Cuda) -> None:
    engine = make_engine(num_kv_blocks=None, max_num_seqs=10_000, memory_utilization=0.9)
    block = engine.kv_cache_bytes // engine.num_kv_blocks
    assert cuda.recorded == 2 * 19  # in the rehearsal, and to stay
    assert cuda.free == (1 << 30) - 19 * GRAPH_BYTES
    room = 0.9 * (1 << 30) - 19 * GRAPH_BYTES
    assert room - block < engine.kv_cache_bytes <= room
