"""What is planned for a model on a machine, and against what: precisions, batch sizes and targets."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from pybatch.tune.cost import Usage


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
