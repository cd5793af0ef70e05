"""A server at a glance, as JSON values: what the live page shows."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

import pybatch
from pybatch.machine.gpus import gpu_loads
from pybatch.machine.load import machine_load
from pybatch.serve.monitoring.history import INTERVAL, KEPT, NAMES, Point
from pybatch.serve.monitoring.http import HttpLoad
from pybatch.serve.service import Service


def snapshot(service: Service, http: HttpLoad, points: Iterable[Point]) -> dict[str, Any]:
    """series has a list for each field of Point, oldest first. requests are those that ask the model: what they say is
    in none of it."""
    engine = service.llm.engine
    taken = list(points)
    metrics_of = service.llm.thread.metrics_of
    running = [request.looks(metrics_of).facts() for request in list(http.open) if request.prompts]
    return {
        "now": round(time.time(), 3),
        "server": {
            "version": pybatch.__version__,
            "model": service.names[0],
            "device": str(engine.decoder.device),
            "started": service.created,
            "max_model_len": engine.max_model_len,
            "max_num_seqs": engine.config.max_num_seqs,
            "max_num_batched_tokens": engine.config.max_num_batched_tokens,
            "kv_blocks": engine.num_kv_blocks,
            "block_size": engine.config.block_size,
        },
        "interval": INTERVAL,
        "kept": KEPT,
        "series": {name: [short(getattr(point, name)) for point in taken] for name in NAMES},
        "machine": {**asdict(machine_load()), "gpus": [asdict(gpu) for gpu in gpu_loads()]},
        "requests": {"running": running, "finished": [request.facts() for request in reversed(http.ended.copy())]},
        "batches": asdict(service.batches.totals()),
    }


def short(value: float | None) -> float | None:
    """Six digits are more than a plot shows."""
    return float(f"{value:.6g}") if isinstance(value, float) and value < 1e6 else value
