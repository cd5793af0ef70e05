"""Batch sizes measured one after another: how throughput rises, where it stops, and against which ceiling."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import torch

from pybatch.engine import Engine, SamplingParams
from pybatch.engine.config import EngineConfig
from pybatch.engine.execution.kv_cache import kv_layout
from pybatch.engine.execution.state_cache import state_layout
from pybatch.engine.metrics import EngineMetrics
from pybatch.engine.scheduling.step import Chunk
from pybatch.model.decoder import Decoder
from pybatch.tune.chips import Chip, MatmulShares, Shares
from pybatch.tune.roofline import Roofline
from pybatch.tune.step_times import StepShape

ROUNDS = 2  # batches of rows that each size runs
KNEE = 1.1  # times the throughput that twice the size has to bring
COPIED, SIDE, REPEATS = 1 << 28, 1024, 5  # bytes, and rows and columns, of what measures the ceilings


@dataclass(frozen=True, slots=True)
class Ceilings:
    """Of this machine, measured. bandwidth: bytes a second that a copy reads and writes. arithmetic: operations a
    second of torch's product of two float32 matrices, on a GPU of bfloat16."""

    bandwidth: float
    arithmetic: float

    @classmethod
    def measured(cls, device: torch.device) -> Ceilings:
        def best(call: Callable[[], object]) -> float:
            times = []
            for _ in range(REPEATS):
                begin = time.perf_counter()
                call()
                if device.type == "cuda":
                    torch.cuda.synchronize(device)
                times.append(time.perf_counter() - begin)
            return min(times)

        source = torch.ones(COPIED, dtype=torch.uint8, device=device)
        target = torch.empty_like(source)
        dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        matrix = torch.ones(SIDE, SIDE, dtype=dtype, device=device)
        return cls(2 * COPIED / best(lambda: target.copy_(source)), 2 * SIDE**3 / best(lambda: matrix @ matrix))

    def roofline(self, decoder: Decoder, quantization: str | None, config: EngineConfig) -> Roofline:
        """What the bytes and operations of a step take at the ceilings."""
        most = MatmulShares(0.0, 1.0, 1.0)
        shares = Shares("", "", 1.0, 1.0, dict.fromkeys(("dense", "w8a16", "w8a8"), most), {"bfloat16": 1.0}, 1.0, 0.0)
        chip = Chip("this machine", 0, self.bandwidth, self.arithmetic, 2 * self.arithmetic, 0, "measured")
        layout = kv_layout(decoder, config)
        return Roofline(chip, shares, decoder, quantization, layout, state_layout(decoder), config.kv_cache_dtype)


@dataclass(frozen=True, slots=True)
class SweepPoint:
    """One batch size. Times in seconds, rates in tokens a second, sizes in bytes. of_bandwidth, of_arithmetic: what the
    steps' bytes and operations take at the ceilings, as a share of the time that was measured."""

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


class WatchedEngine(Engine):
    """Notes what its steps compute."""

    shapes: list[StepShape]

    def _schedule(self) -> list[Chunk]:
        chunks = super()._schedule()
        if chunks:
            self.shapes.append(StepShape.of(chunks))
        return chunks


def sweep(
    engine: Engine, quantization: str | None, sizes: Iterable[int], prompt: int, output: int, ceilings: Ceilings
) -> list[SweepPoint]:
    """Runs rows of so many tokens in batches of each size, on engines of their own with the given one's weights. A KV
    pool holds what the given one's holds."""
    return [measure(engine, quantization, size, prompt, output, ceilings) for size in sizes]


def measure(
    engine: Engine, quantization: str | None, size: int, prompt: int, output: int, ceilings: Ceilings
) -> SweepPoint:
    config = replace(
        engine.config,
        max_num_seqs=size,
        max_num_batched_tokens=max(size, engine.config.max_num_batched_tokens),
        num_kv_blocks=engine.num_kv_blocks,
        max_model_len=engine.max_model_len,
        enable_prefix_caching=False,
    )
    of_size = WatchedEngine(engine.decoder, None, config)
    run(of_size, size, prompt, 2, first=0)  # what is made once is made before
    of_size.shapes = []
    of_size.metrics = EngineMetrics(of_size.num_kv_blocks)
    of_size._new_schedule()
    begin = time.perf_counter()
    run(of_size, ROUNDS * size, prompt, output, first=size)
    seconds = time.perf_counter() - begin
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
    )


def run(engine: WatchedEngine, rows: int, prompt: int, output: int, *, first: int) -> None:
    """As many at a time as the batch holds."""
    engine.shapes = []
    params = SamplingParams(temperature=0, max_tokens=output, ignore_eos=True, detokenize=False)
    vocab, added = engine.decoder.config.vocab_size, 0
    while added < rows or engine.has_unfinished():
        while added < rows and engine.num_unfinished() < engine.config.max_num_seqs:
            ids = [((first + added) * 7919 + i * 31) % vocab for i in range(prompt)]
            engine.add_request(f"{first}-{added}", ids, params)
            added += 1
        engine.step()


def knee(points: Sequence[SweepPoint]) -> tuple[int, str]:
    """The size from which on twice as much brings hardly anything, and why."""
    for point, larger in pairwise(points):
        if larger.total_rate < point.total_rate * KNEE:
            return point.max_num_seqs, bound(larger)
    return points[-1].max_num_seqs, "none found: the largest size is the fastest"


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
