"""What `metrics()` gives: the engine and the machine at one moment."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import Any

from pybatch.engine import Engine
from pybatch.engine.metrics import MetricsSummary
from pybatch.machine.gpus import GpuLoad, gpu_loads
from pybatch.machine.load import MachineLoad, machine_load


@dataclass(frozen=True, slots=True)
class EngineNow:
    """What is in the engine at the moment. running, waiting: samples in the batch, and in the queue for a place."""

    running: int
    waiting: int
    kv_blocks: int
    kv_blocks_used: int
    kv_blocks_pinned: int
    host_blocks_used: int

    @property
    def kv_usage(self) -> float:
        """The share of the KV blocks in use. What the prefix cache keeps counts as free."""
        return self.kv_blocks_used / self.kv_blocks


@dataclass(frozen=True, slots=True)
class Metrics:
    """A snapshot, which does not change. at: when, in seconds since 1970. total: counts and quantiles since the engine
    was made. machine: the host by psutil, with RAPL's joules where they may be read. gpus: by NVML; empty where there
    is no driver or no nvidia-ml-py."""

    at: float
    now: EngineNow
    total: MetricsSummary
    machine: MachineLoad
    gpus: tuple[GpuLoad, ...]

    @classmethod
    def of(cls, engine: Engine) -> Metrics:
        """May be called on any thread, also while a step runs; takes some milliseconds."""
        return cls(
            time.time(),
            EngineNow(
                engine.num_running,
                engine.num_waiting,
                engine.num_kv_blocks,
                engine.num_kv_blocks_used,
                engine.num_kv_blocks_pinned,
                engine.metrics.host_blocks_now,
            ),
            engine.metrics.summary(),
            machine_load(),
            tuple(gpu_loads()),
        )

    def to_json(self) -> dict[str, Any]:
        """null: nothing was measured."""
        fields: dict[str, Any] = without_nan(asdict(self))
        return fields


def without_nan(value: Any) -> Any:
    """JSON has no NaN."""
    if isinstance(value, dict):
        return {name: without_nan(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(each) for each in value]
    return None if isinstance(value, float) and value != value else value
