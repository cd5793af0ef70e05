"""Where a step's time goes: each kernel, and the Python around them."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from statistics import median
from types import TracebackType
from typing import Any, Self

from torch import Tensor

from pybatch.engine.config import EngineConfig
from pybatch.engine.engine import Engine
from pybatch.engine.execution.graphs import Graph
from pybatch.engine.sampling_params import SamplingParams
from pybatch.ops import CpuGraph


class TimedGraph:
    """Adds up the seconds of a graph's kernels, by their names."""

    def __init__(self, graph: CpuGraph, seconds: defaultdict[str, float]) -> None:
        self._graph, self._seconds = graph, seconds

    def replay(self) -> None:
        for name, seconds in self._graph.timed_replay().items():
            self._seconds[name] += seconds


class StepParts:
    """A context manager that times the parts of an engine's steps: on a CPU each kernel of steps that only decode, on a
    GPU the launch of all, whose work `sample` then waits for. `seconds` adds up; who reads it clears it.

    The engine's methods are wrapped meanwhile, so that steps cost nothing more at other times.
    """

    def __init__(self, engine: Engine) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self._engine, self._restore = engine, ExitStack()

    def __enter__(self) -> Self:
        engine: Any = self._engine
        runner, graphs = engine._computer.runner, engine._computer.runner._graphs
        self._wrap(engine, "_schedule", "schedule")
        if engine.decoder.device.type == "cpu":
            self._wrap(runner._inputs, "fill", "inputs")
            record = graphs._recorder.record

            def record_timed(call: Callable[[], Tensor]) -> tuple[Graph, Tensor]:
                graph, result = record(call)
                return TimedGraph(graph, self.seconds), result

            self._set(graphs._recorder, "record", record_timed)
            graphs._graphs.clear()
            self._restore.callback(graphs._graphs.clear)
        else:
            self._wrap(runner, "run", "launch")
        self._wrap(engine._computer.sampler, "sample", "sample")
        self._wrap(engine, "_update", "update")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._restore.close()

    def _wrap(self, owner: Any, method: str, name: str) -> None:
        function: Callable[..., Any] = getattr(owner, method)

        def timed(*arguments: Any, **named: Any) -> Any:
            begin = time.perf_counter()
            try:
                return function(*arguments, **named)
            finally:
                self.seconds[name] += time.perf_counter() - begin

        self._set(owner, method, timed)

    def _set(self, owner: Any, method: str, function: Callable[..., Any]) -> None:
        setattr(owner, method, function)
        self._restore.callback(delattr, owner, method)


def expect_room(config: EngineConfig, sizes: Iterable[int]) -> None:
    """Raises ValueError for a size of which the engine's steps have not as many sequences. config: of a device."""
    most = min(config.max_num_seqs, config.max_num_batched_tokens)
    for size in sizes:
        if not 1 <= size <= most:
            raise ValueError(f"sequences: expected 1 to {most}, got {size}")


def decode_step(engine: Engine, sequences: int, context: int, steps: int) -> dict[str, float]:
    """Seconds of each part of the median step of so many sequences that decode, with so many tokens of context at
    first; "step" is the whole, and "other" what is in no part. Raises ValueError if the engine has not the room. The
    engine is idle before and after."""
    expect_room(engine.config, [sequences])
    longest, blocks = context + 2 * steps + 2, engine.num_kv_blocks
    needed = sequences * -(-longest // engine.config.block_size)
    if longest > engine.max_model_len:
        most = engine.max_model_len - (longest - context)
        if most < 1:
            raise ValueError(f"steps: expected at most {(engine.max_model_len - 3) // 2:,}, got {steps:,}")
        raise ValueError(
            f"context: expected at most {most:,} tokens, as {longest - context} are added, got {context:,}"
        )
    if needed > blocks:
        raise ValueError(
            f"context: {sequences} sequences of {longest:,} tokens need {needed:,} KV blocks and there are {blocks:,}"
        )
    vocab = engine.decoder.config.vocab_size
    params = SamplingParams(temperature=0, max_tokens=longest - context, ignore_eos=True, detokenize=False)
    for i in range(sequences):
        engine.add_request(f"step-{i}", [(i * context + j) % vocab for j in range(context)], params)
    measured: list[dict[str, float]] = []
    try:
        with StepParts(engine) as parts:
            warm = 0
            while len(measured) < steps:
                parts.seconds.clear()
                before, begin = engine.metrics.step_tokens, time.perf_counter()
                engine.step()
                whole = time.perf_counter() - begin
                if engine.metrics.step_tokens - before == sequences and engine.num_running == sequences:
                    warm += 1
                    if warm > 2:  # in the first the graph is recorded
                        named = dict(parts.seconds)
                        measured.append({**named, "other": whole - sum(named.values()), "step": whole})
    finally:
        for i in range(sequences):
            engine.abort(f"step-{i}")
    names = dict.fromkeys(name for step in measured for name in step if name not in ("other", "step"))
    return {name: median(step.get(name, 0.0) for step in measured) for name in (*names, "other", "step")}
