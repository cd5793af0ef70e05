"""How a workload is scheduled, whatever a step takes: one simulation, and the times of any machine from it.

With a continuous policy and no targets the scheduler never looks at the clock. So its steps are simulated once, in
units of a step, and are the same for all precisions, as long as the KV pool is no bound.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from pybatch.engine.config import EngineConfig
from pybatch.engine.metrics import RequestMetrics
from pybatch.tune.simulator import SimulatedRun, Simulator
from pybatch.tune.step_times import StepShape
from pybatch.tune.workload import Workload

ROOM = 2  # times the blocks that were touched, from which on a pool is no bound


@dataclass(frozen=True, slots=True)
class Trace:
    """numbers: of each step's shape among `shapes`. requests: behind how many steps each arrived, had a first token and
    ended, and its output tokens."""

    run: SimulatedRun
    blocks: int
    shapes: list[StepShape]
    numbers: NDArray[np.intp]
    requests: NDArray[np.float64]

    def serves(self, blocks: int) -> bool:
        """Whether a pool of so many blocks has the same steps."""
        free = self.run.touched_kv_blocks * ROOM
        return blocks == self.blocks or (free <= self.blocks and free <= blocks)

    def ends(self, seconds: Callable[[StepShape], float]) -> NDArray[np.float64]:
        """When each step ends, behind a 0."""
        each = np.array([seconds(shape) for shape in self.shapes])
        return np.concatenate([[0.0], np.cumsum(each[self.numbers])])

    def row_seconds(self, ends: NDArray[np.float64]) -> float:
        """What a row more takes, for each of its tokens: as in the steps until the last row came, in which the batch
        was full; or in all, where all came at once."""
        run, last = self.run, int(self.requests[:, 0].max()) or len(self.numbers)
        tokens = np.array([shape.tokens for shape in self.shapes])[self.numbers]
        computed = run.tokens / (run.prompt_tokens + run.output_tokens)  # the others are in the prefix cache
        return float(ends[last] / tokens[:last].sum() * computed)

    def counts(self) -> Counter[StepShape]:
        number = np.bincount(self.numbers, minlength=len(self.shapes))
        return Counter(dict(zip(self.shapes, number.tolist(), strict=True)))


class Traces:
    """Of a workload, each made once."""

    def __init__(self, workload: Workload, max_model_len: int, max_num_batched_tokens: int) -> None:
        self._workload, self._max_model_len, self._budget = workload, max_model_len, max_num_batched_tokens
        self._made: dict[tuple[int, int, int], list[Trace]] = {}

    def trace(self, size: int, rows: int, blocks: int, states: int) -> Trace:
        """Raises ValueError where a row does not fit."""
        made = self._made.setdefault((size, rows, states), [])
        found = next((trace for trace in made if trace.serves(blocks)), None)
        if found is None:
            found = self._simulate(size, rows, blocks, states)
            made.append(found)
        return found

    def _simulate(self, size: int, rows: int, blocks: int, states: int) -> Trace:
        shapes: dict[StepShape, int] = {}
        numbers: list[int] = []
        requests: list[tuple[float, ...]] = []

        def note(shape: StepShape) -> float:
            shape = rounded(shape)
            numbers.append(shapes.setdefault(shape, len(shapes)))
            return 1.0

        def ended(request: RequestMetrics) -> None:
            first, finished = request.first_token_time or 0.0, request.finished_time or 0.0
            requests.append((request.arrival_time, first, finished, request.num_output_tokens))

        simulator = Simulator(
            EngineConfig(
                max_num_seqs=size,
                max_queued=0,  # whoever comes finds a place: TTFT is that of a batch which is always full
                max_num_batched_tokens=max(size, self._budget),
                memory_utilization=1.0,
            ),
            note,
            max_model_len=self._max_model_len,
            num_kv_blocks=blocks,
            num_states=states,
        )
        run = simulator.run(self._workload.take(rows), ended)
        return Trace(run, blocks, list(shapes), np.array(numbers), np.array(requests))


def rounded(shape: StepShape) -> StepShape:
    """So that there are fewer of them: context and pairs to three digits."""

    def digits(number: int) -> int:
        unit = int(10 ** max(0, len(str(number)) - 3))
        return number // unit * unit

    return replace(shape, context=digits(shape.context), pairs=digits(shape.pairs))
