"""Batch sizes measured one after another: how throughput rises, where it stops, and against which ceiling."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from pybatch.engine import Engine, SamplingParams
from pybatch.engine.metrics import EngineMetrics
from pybatch.engine.scheduling.step import Chunk
from pybatch.machine.gpus import gpu_loads
from pybatch.machine.load import energy
from pybatch.tune.ceilings import Ceilings
from pybatch.tune.simulator import Work
from pybatch.tune.step_times import StepShape
from pybatch.tune.workload import Workload

ROUNDS = 2  # batches of rows that each size runs
KNEE = 1.1  # times the throughput that twice the size has to bring
RANGES = {"1-16": (1, 16), "32-64": (32, 64), "above 64": (65, math.inf)}  # small, middle and large batches


@dataclass(frozen=True, slots=True)
class SweepPoint:
    """One batch size. Times in seconds, rates in tokens a second, sizes in bytes. of_bandwidth, of_arithmetic: what the
    steps' bytes and operations take at the ceilings, as a share of the time that was measured. joules: of the whole
    run, by the counters of processors (RAPL) and GPUs (NVML); None where the machine does not tell."""

    max_num_seqs: int
    seconds: float
    output_rate: float
    total_rate: float
    ttft_p50: float
    ttft_p99: float
    tpot_p50: float
    tpot_p99: float
    sequences: float
    weight_bytes: int
    peak_kv_bytes: int
    preemptions: int
    of_bandwidth: float
    of_arithmetic: float
    joules: float | None = None

    @property
    def tokens_per_joule(self) -> float | None:
        return None if not self.joules else self.total_rate * self.seconds / self.joules


@dataclass(frozen=True, slots=True)
class Sweep:
    """All batch sizes of one precision, KV type and policy."""

    precision: str
    kv: str
    policy: str
    points: Sequence[SweepPoint]

    @property
    def name(self) -> str:
        parts = [self.precision, "" if self.kv == "auto" else f"KV {self.kv}"]
        return ", ".join(filter(None, [*parts, "" if self.policy == "continuous" else self.policy]))

    @property
    def knee(self) -> tuple[int, str]:
        """The size from which on twice as much brings hardly anything, and why."""
        for point, larger in pairwise(self.points):
            if larger.total_rate < point.total_rate * KNEE ** math.log2(larger.max_num_seqs / point.max_num_seqs):
                return point.max_num_seqs, bound(larger)
        return self.points[-1].max_num_seqs, "none found: the largest size is the fastest"

    def ranges(self) -> dict[str, dict[str, float]]:
        """Of the small, middle and large batches: which share of the most throughput the slowest and fastest of them
        have, and the seconds for each later token."""
        most = max(point.total_rate for point in self.points)
        told = {}
        for name, (low, high) in RANGES.items():
            if some := [point for point in self.points if low <= point.max_num_seqs <= high]:
                rates, tpot = [point.total_rate / most for point in some], [point.tpot_p50 for point in some]
                told[name] = {
                    "least": min(rates),
                    "most": max(rates),
                    "tpot_least": min(tpot),
                    "tpot_most": max(tpot),
                }
        return told


def bound(point: SweepPoint) -> str:
    if point.preemptions or point.sequences < 0.6 * point.max_num_seqs:
        return "the KV cache holds no more"
    if max(point.of_bandwidth, point.of_arithmetic) < 0.3:
        return (
            f"overhead: bytes are {point.of_bandwidth:.0%} and arithmetic {point.of_arithmetic:.0%} of their ceilings"
        )
    if point.of_arithmetic > point.of_bandwidth:
        return f"arithmetic, at {point.of_arithmetic:.0%} of its ceiling"
    return f"bytes, at {point.of_bandwidth:.0%} of the bandwidth"


class WatchedEngine(Engine):
    """Notes the shapes of its steps."""

    shapes: list[StepShape]

    def _schedule(self) -> list[Chunk]:
        chunks = super()._schedule()
        if chunks:
            self.shapes.append(StepShape.of(chunks))
        return chunks


def measure(
    engine: Engine,
    quantization: str | None,
    size: int,
    workload: Workload,
    ceilings: Ceilings,
    policy: str = "continuous",
    rounds: int = ROUNDS,
) -> SweepPoint:
    """Runs rows of the workload in batches of that size, on an engine of its own with the given one's weights and a KV
    pool that holds what the given one's holds. rounds: batches of rows."""
    config = replace(
        engine.config,
        max_num_seqs=size,
        max_num_batched_tokens=max(size, engine.config.max_num_batched_tokens),
        num_kv_blocks=engine.num_kv_blocks,
        max_model_len=engine.max_model_len,
        policy=policy,
    )
    of_size = WatchedEngine(engine.decoder, None, config)
    rows = list(workload.take((rounds + 1) * size))
    run(of_size, [Work(work.prompt_token_ids[:1], [2]) for work in rows[:size]])  # what is made once is made before
    of_size.shapes = []
    of_size.metrics = EngineMetrics(of_size.num_kv_blocks)
    of_size._new_schedule()
    joules, begin = joules_used(), time.perf_counter()
    run(of_size, rows[size:])
    seconds = time.perf_counter() - begin
    after = joules_used()
    told = of_size.metrics.summary()
    roofline = ceilings.roofline(engine.decoder, quantization, config)
    parts = [roofline.parts(shape) for shape in of_size.shapes]
    return SweepPoint(
        size,
        seconds,
        told.output_tokens / seconds,
        (told.output_tokens + told.prompt_tokens) / seconds,
        told.ttft_p50,
        told.ttft_p99,
        told.tpot_p50,
        told.tpot_p99,
        told.batch_occupancy,
        engine.weight_bytes,
        told.peak_kv_blocks * engine.kv_block_bytes,
        told.preemptions,
        sum(part["weights"] + part["KV"] for part in parts) / seconds,
        sum(part["arithmetic"] for part in parts) / seconds,
        None if joules is None or after is None else after - joules,
    )


def joules_used() -> float | None:
    """Since some time, by all processors and GPUs that tell."""
    packages = [joules for name, joules in energy().items() if name.startswith("package")]
    told = [*packages, *(each.energy for each in gpu_loads() if each.energy is not None)]
    return sum(told) if told else None


def run(engine: WatchedEngine, rows: Iterable[Work]) -> None:
    """As many at a time as the policy may choose from."""
    engine.shapes = []
    vocab, pending = engine.decoder.config.vocab_size, list(enumerate(rows))[::-1]
    while pending or engine.has_unfinished():
        while pending and engine.num_unfinished() < engine.config.requests_ahead:
            number, work = pending.pop()
            outputs = work.output_tokens[0]
            params = SamplingParams(temperature=0, max_tokens=outputs, ignore_eos=True, detokenize=False)
            ids = [(token * 7919 + (token >> 20) * 31) % vocab for token in work.prompt_token_ids]
            engine.add_request(f"{number}", ids, params)
        engine.step()
