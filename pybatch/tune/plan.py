"""What a model, a machine and a workload come to: for each precision the batch size, speed, time and cost."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Protocol

import numpy as np

from pybatch.engine.config import EngineConfig
from pybatch.engine.execution.kv_cache import kv_layout
from pybatch.engine.execution.state_cache import state_layout
from pybatch.model.config import ModelConfig
from pybatch.model.decoder import Decoder
from pybatch.tune.cost import Prices, Usage
from pybatch.tune.fleet import Fleet, FleetPlan, OneMachine, fleets
from pybatch.tune.precisions import ALIASES
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


@dataclass(frozen=True, slots=True)
class Targets:
    """In seconds. ttft, tpot: of 99 requests in 100. deadline: of the job."""

    ttft: float | None = None
    tpot: float | None = None
    deadline: float | None = None

    def __post_init__(self) -> None:
        for name in ("ttft", "tpot", "deadline"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"{name}: expected seconds, above 0, got {value!r}")


@dataclass(frozen=True, slots=True)
class Point:
    """One batch size. Times in seconds; rates in tokens a second. seconds: of the job on one machine; row_seconds: that
    a row more takes. ttft: of requests that find a place in the batch. spent: of all steps' time the shares."""

    max_num_seqs: int
    seconds: float
    row_seconds: float
    output_rate: float
    total_rate: float
    ttft_p50: float
    ttft_p99: float
    tpot_p50: float
    tpot_p99: float
    sequences: float
    peak_kv_share: float
    preemptions: int
    spent: dict[str, float]

    def meets(self, targets: Targets) -> bool:
        """A batch of one token has no TPOT."""
        return not (
            (targets.ttft is not None and self.ttft_p99 > targets.ttft)
            or (targets.tpot is not None and self.tpot_p99 > targets.tpot)
        )


@dataclass(frozen=True, slots=True)
class Option:
    """One precision with one type of KV cache. best: the smallest batch size that meets the targets with hardly less
    than the most throughput; None: there is none, as `why` says. machines: to meet the deadline; None: no number
    does. usage: of all machines together. host_weight_bytes: of weight_bytes, those that are on the host."""

    precision: str
    kv_cache_dtype: str
    weight_bytes: int
    kv_block_bytes: int
    kv_blocks: int
    kv_tokens: int
    points: list[Point] = field(default_factory=list)
    best: Point | None = None
    why: str = ""
    machines: int | None = 1
    job_seconds: float | None = None
    usage: Usage | None = None
    host_weight_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Plan:
    model: str
    machine: str
    rows: int
    input_tokens: float
    output_tokens: float
    options: list[Option]

    @property
    def chosen(self) -> Option | None:
        """That which costs least, by the machines' time."""
        able = [each for each in self.options if each.usage is not None]
        return min(able, key=lambda each: each.usage.seconds, default=None)  # type: ignore[union-attr]

    def fleets(self, largest: Fleet) -> Sequence[FleetPlan]:
        """What so many machines of the chosen option take, and fewer of them; none where there is no such option."""
        if self.chosen is None or self.chosen.best is None:
            return []
        best = self.chosen.best
        ramp = max(0.0, best.seconds - best.row_seconds * self.rows)
        return fleets(largest, self.rows, OneMachine(best.row_seconds, best.max_num_seqs, ramp))

    def to_json(self, prices: Prices) -> dict[str, Any]:
        chosen = self.chosen
        return {
            "model": self.model,
            "machine": self.machine,
            "rows": self.rows,
            "input_tokens": self.input_tokens,
            "output_tokens": self.output_tokens,
            "chosen": None if chosen is None else self.options.index(chosen),
            "options": [
                {**asdict(each), "cost": None if each.usage is None else prices.to_json(each.usage)}
                for each in self.options
            ],
        }


def plan(
    model: ModelConfig,
    machine: Machine,
    workload: Workload,
    targets: Targets,
    *,
    precisions: Sequence[str] = (),
    kv_cache_dtypes: Sequence[str] = (),
    max_num_seqs: int = 256,
    tell: Callable[[str], object] = lambda what: None,
) -> Plan:
    """precisions, kv_cache_dtypes: none: those of the machine. tell: called with what is being planned. Raises
    ValueError."""
    if workload.longest > model.max_position:
        raise ValueError(
            f"input_tokens, output_tokens: a row has {workload.longest:,} tokens, and the context of {model.name} is "
            f"{model.max_position:,}"
        )
    precisions = [ALIASES.get(each, each) for each in precisions]
    for name, given, known in (
        ("precision", precisions, machine.precisions),
        ("kv_cache_dtype", kv_cache_dtypes, machine.kv_cache_dtypes),
    ):
        for each in given:
            if each not in known:
                raise ValueError(f"{name}: expected one of {', '.join(known)}, got {each!r}")
    traces = Traces(workload, model.max_position, machine.max_num_batched_tokens)
    options = []
    for precision in precisions or machine.precisions:
        decoder = machine.decoder(model, precision)
        for kv in kv_cache_dtypes or machine.kv_cache_dtypes:
            tell(f"{precision}, KV {kv}")
            search = Search(machine, decoder, precision, kv, workload, targets, max_num_seqs, traces)
            options.append(search.option())
    return Plan(model.name, machine.name, workload.rows, workload.input_tokens, workload.output_tokens, options)


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
