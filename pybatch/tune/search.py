"""The batch size of one precision, by simulations of larger and larger ones."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Protocol

import numpy as np

from pybatch.engine.config import EngineConfig
from pybatch.engine.execution.kv_cache import kv_layout
from pybatch.engine.execution.state_cache import state_layout
from pybatch.model.config import ModelConfig
from pybatch.model.decoder import Decoder
from pybatch.tune.cost import Usage
from pybatch.tune.options import Option, Point, Targets
from pybatch.tune.step_times import StepShape
from pybatch.tune.trace import Traces
from pybatch.tune.workload import Workload

ROUNDS = 8  # batches that are simulated
FEWEST = 16  # rows of a simulation
MOST_SIMULATED = 1 << 17  # output tokens of a simulation, as far as one batch allows
ENOUGH = 1.03  # times the throughput that a batch twice the size has to bring


class StepModel(Protocol):
    def seconds(self, shape: StepShape) -> float: ...

    def parts(self, shape: StepShape) -> dict[str, float]: ...  # by what the time is spent on


class Machine(Protocol):
    """Where a plan is for. precisions: QUANTIZATIONS, or a dtype."""

    @property
    def name(self) -> str: ...

    @property
    def kv_cache_dtypes(self) -> Sequence[str]: ...

    @property
    def precisions(self) -> Sequence[str]: ...

    @property
    def max_num_batched_tokens(self) -> int: ...

    def decoder(self, model: ModelConfig, precision: str) -> Decoder: ...  # planned

    def host_bytes(self, decoder: Decoder) -> int: ...  # of weights that are in the host's memory instead

    def cache_bytes(self, decoder: Decoder, max_num_seqs: int) -> int: ...  # of memory for KV blocks and states

    def steps(self, decoder: Decoder, precision: str, config: EngineConfig) -> StepModel: ...


class Search:
    """For the batch size of one option."""

    def __init__(
        self,
        machine: Machine,
        decoder: Decoder,
        precision: str,
        kv: str,
        workload: Workload,
        targets: Targets,
        max_num_seqs: int,
        traces: Traces,
    ) -> None:
        self._traces = traces
        self._machine, self._decoder, self._precision, self._kv = machine, decoder, precision, kv
        self._workload, self._targets, self._most = workload, targets, max_num_seqs
        config = EngineConfig(kv_cache_dtype=kv)  # type: ignore[arg-type]
        self._block_size = config.block_size
        self._block_bytes = kv_layout(decoder, config).block_bytes
        self._states = state_layout(decoder)

    def option(self) -> Option:
        return replace(self._option(), host_weight_bytes=self._machine.host_bytes(self._decoder))

    def _option(self) -> Option:
        weights = self._decoder.weight_bytes()
        blocks, _ = self._pool(1)
        longest = -(-self._workload.longest // self._block_size)
        known = (self._precision, self._kv, weights, self._block_bytes, max(0, blocks))
        tokens = max(0, blocks) * self._block_size
        if blocks < longest:
            left = f"{max(0, blocks) * self._block_bytes / 1e9:,.1f} GB are left for the KV cache"
            return Option(
                *known, tokens, why=f"does not fit: {left}, and a row needs {longest:,} blocks", machines=None
            )
        points = list(self._points())
        best, why = self._choose(points)
        if best is None:
            return Option(*known, tokens, points, None, why, None)
        blocks, _ = self._pool(best.max_num_seqs)
        known = (*known[:4], blocks)
        machines, seconds = self._machines(best)
        usage = None
        if machines is not None:
            rows = self._workload.rows
            inputs, outputs = (
                round(rows * each) for each in (self._workload.input_tokens, self._workload.output_tokens)
            )
            usage = Usage(seconds * machines, rows, inputs, outputs)
        else:
            why = "no number of machines meets the deadline: a row takes longer"
        return Option(*known, blocks * self._block_size, points, best, why, machines, seconds, usage)

    def _pool(self, max_num_seqs: int) -> tuple[int, int]:
        """Blocks of KV, and slots of states."""
        memory = self._machine.cache_bytes(self._decoder, max_num_seqs)
        states = 0
        if self._states is not None:
            states = max(0, min(3 * max_num_seqs, memory // 2 // self._states.slot_bytes))
            memory -= states * self._states.slot_bytes
            if states < 2:
                return 0, 0
        return memory // self._block_bytes, states

    def _points(self) -> Iterator[Point]:
        """Batches of twice the size each, as long as that brings something."""
        size, last, stale = 1, 0.0, 0
        while size <= self._most and stale < 2:
            point = self._point(size)
            yield point
            stale = stale + 1 if point.total_rate < last * ENOUGH else 0
            last = max(last, point.total_rate)
            size = min(2 * size, self._most) if size < self._most else size + 1

    def _point(self, size: int) -> Point:
        blocks, states = self._pool(size)
        config = EngineConfig(kv_cache_dtype=self._kv)  # type: ignore[arg-type]
        model = self._machine.steps(self._decoder, self._precision, config)
        workload = self._workload
        affordable = int(MOST_SIMULATED / workload.output_tokens)
        rows = min(workload.rows, max(2 * size, min(ROUNDS * size, affordable), FEWEST))
        trace = self._traces.trace(size, rows, blocks, states)
        ends = trace.ends(model.seconds)
        row_seconds = trace.row_seconds(ends) * (workload.input_tokens + workload.output_tokens)
        job = float(ends[-1]) + row_seconds * (workload.rows - rows)
        arrived, first, ended = ends[trace.requests[:, :3].astype(int)].T
        later = trace.requests[:, 3] - 1
        tpot = ((ended - first)[later > 0] / later[later > 0]) if (later > 0).any() else np.zeros(1)
        spent = Counter[str]()
        for shape, count in trace.counts().items():
            spent.update({name: count * part for name, part in model.parts(shape).items()})
        tokens, run = workload.input_tokens + workload.output_tokens, trace.run
        return Point(
            size,
            job,
            row_seconds,
            workload.rows * workload.output_tokens / job,
            workload.rows * tokens / job,
            float(np.quantile(first - arrived, 0.5)),
            float(np.quantile(first - arrived, 0.99)),
            float(np.quantile(tpot, 0.5)),
            float(np.quantile(tpot, 0.99)),
            run.sequences / run.steps,
            run.peak_kv_blocks / blocks,
            run.preemptions,
            {name: part / spent.total() for name, part in spent.items()},
        )

    def _choose(self, points: Sequence[Point]) -> tuple[Point | None, str]:
        """With the reason why a larger batch is none better."""
        able = [point for point in points if point.meets(self._targets)]
        if not able:
            least = min(points, key=lambda point: point.tpot_p99)
            return None, (
                f"no batch size meets the targets: with {least.max_num_seqs} TTFT p99 is {least.ttft_p99:.3g} s, "
                f"TPOT p99 {least.tpot_p99:.3g} s"
            )
        most = max(point.total_rate for point in able)
        best = next(point for point in able if point.total_rate * ENOUGH >= most)
        larger = next((point for point in points if point.max_num_seqs > best.max_num_seqs), None)
        return best, reason(best, larger, self._targets)

    def _machines(self, best: Point) -> tuple[int | None, float]:
        """How many meet the deadline, and the time they take: the rows are shared out evenly."""
        rows, deadline = self._workload.rows, self._targets.deadline
        first = best.seconds - best.row_seconds * rows  # to fill and to empty the batch
        if deadline is None or best.seconds <= deadline:
            return 1, best.seconds
        if deadline <= first:
            return None, math.inf
        machines = math.ceil(rows * best.row_seconds / (deadline - first))
        if machines > rows:
            return None, math.inf
        return machines, first + best.row_seconds * rows / machines


def reason(best: Point, larger: Point | None, targets: Targets) -> str:
    """Why no larger batch was chosen."""
    if larger is None:
        return "the largest batch that was tried"
    if not larger.meets(targets):
        return f"{larger.max_num_seqs} would miss the targets"
    if larger.preemptions or larger.sequences < 0.75 * larger.max_num_seqs <= best.max_num_seqs * 1.5:
        return "the KV cache holds no more"
    name = max(("arithmetic", "KV", "weights", "transfer", "overhead"), key=lambda part: larger.spent.get(part, 0.0))
    words = {
        "arithmetic": "arithmetic takes most of a step",
        "KV": "reading the KV cache takes most of a step",
        "weights": "reading the weights takes most of a step",
        "transfer": "copying the host's weights takes most of a step",
        "overhead": "what each step and sequence costs besides takes most",
    }
    return words[name]
