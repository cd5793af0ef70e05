"""The last minutes, in points at equal intervals."""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from dataclasses import dataclass, fields

from pybatch.api.async_llm import AsyncLLM
from pybatch.engine.metrics import Distribution
from pybatch.machine.gpus import gpu_loads
from pybatch.machine.load import machine_load

INTERVAL = 1.0  # seconds
KEPT = 600  # points


@dataclass(frozen=True, slots=True)
class Point:
    """One interval. Rates are a second's mean; times are seconds; None: there was nothing to measure."""

    time: float  # its end, since 1970
    prompt_tokens: float  # a second: prompts whose first token came
    output_tokens: float  # a second
    requests: float  # a second: those that finished
    running: int  # samples in the batch
    waiting: int  # requests
    batch: float | None  # mean sequences of a step
    step_tokens: float | None  # mean tokens of a step
    steps: float  # a second
    kv_usage: float  # the fraction of KV blocks in use
    preemptions: int
    ttft_p50: float | None  # of requests that are no rows of batches
    ttft_p99: float | None
    tpot_p50: float | None
    tpot_p99: float | None
    cpu: float | None  # the fraction of the machine's processors that was busy
    process_cpu: float  # processors that this process used
    memory_used: int  # bytes, of the machine
    process_memory: int  # bytes
    network_received: float  # bytes a second
    network_sent: float
    disk_read: float
    disk_written: float
    gpu_utilization: float | None  # of all GPUs: the mean
    gpu_memory_used: int | None  # bytes, and the rest too: the sum
    gpu_power: float | None  # watts
    gpu_temperature: float | None  # the highest


NAMES = [field.name for field in fields(Point)]


class Reading:
    """What a point is the difference of."""

    def __init__(self, llm: AsyncLLM) -> None:
        metrics, self.machine = llm.engine.metrics, machine_load()
        self.now = time.perf_counter()
        self.steps, self.step_tokens, self.step_sequences = metrics.steps, metrics.step_tokens, metrics.step_sequences
        self.prompt_tokens, self.output_tokens = metrics.prefilled_tokens, metrics.output_tokens
        self.requests, self.preemptions = metrics.requests, metrics.preemptions
        self.ttft, self.tpot = metrics.interactive_ttft.copy(), metrics.inter_token.copy()
        self.busy = sum(seconds for mode, seconds in self.machine.cpu_seconds.items() if mode in BUSY)
        self.cpu = self.busy + sum(seconds for mode, seconds in self.machine.cpu_seconds.items() if mode in IDLE)


BUSY, IDLE = ("user", "nice", "system", "irq", "softirq", "steal"), ("idle", "iowait")


class History:
    """Takes a point each second on a thread of its own, from `start` to `close`. Its memory is bounded."""

    def __init__(self, llm: AsyncLLM) -> None:
        self._llm = llm
        self._points: deque[Point] = deque(maxlen=KEPT)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="pybatch-history", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        self._closed.set()
        self._thread.join()

    def points(self, since: float = 0.0) -> list[Point]:
        """Those after `since`, in seconds since 1970."""
        return [point for point in self._points.copy() if point.time > since]

    def _run(self) -> None:
        before: Reading | None = None
        due = time.monotonic()
        while not self._closed.wait(max(0.0, due - time.monotonic())):
            due = max(due + INTERVAL, time.monotonic())  # a machine that slept does not catch up
            try:
                reading = Reading(self._llm)
            except OSError:  # a process that may open no more files; the next point is of a longer interval
                continue
            if before is not None:
                self._points.append(point(self._llm, before, reading))
            before = reading


def point(llm: AsyncLLM, before: Reading, now: Reading) -> Point:
    seconds = now.now - before.now
    steps = now.steps - before.steps
    cpu = now.cpu - before.cpu
    ttft, tpot = now.ttft.since(before.ttft), now.tpot.since(before.tpot)
    machine, then, gpus = now.machine, before.machine, gpu_loads()
    memory = [gpu.memory_used for gpu in gpus if gpu.memory_used is not None]
    power = [gpu.power for gpu in gpus if gpu.power is not None]
    used = [gpu.utilization for gpu in gpus if gpu.utilization is not None]

    def rate(counts: dict[str, int], before: dict[str, int], name: str) -> float:
        return (counts.get(name, 0) - before.get(name, 0)) / seconds

    return Point(
        time=round(time.time(), 3),
        prompt_tokens=(now.prompt_tokens - before.prompt_tokens) / seconds,
        output_tokens=(now.output_tokens - before.output_tokens) / seconds,
        requests=(now.requests - before.requests) / seconds,
        running=llm.engine.num_running,
        waiting=llm.thread.num_waiting,
        batch=(now.step_sequences - before.step_sequences) / steps if steps else None,
        step_tokens=(now.step_tokens - before.step_tokens) / steps if steps else None,
        steps=steps / seconds,
        kv_usage=llm.engine.num_kv_blocks_used / llm.engine.num_kv_blocks,
        preemptions=now.preemptions - before.preemptions,
        ttft_p50=quantile(ttft, 0.5),
        ttft_p99=quantile(ttft, 0.99),
        tpot_p50=quantile(tpot, 0.5),
        tpot_p99=quantile(tpot, 0.99),
        cpu=(now.busy - before.busy) / cpu if cpu > 0 else None,
        process_cpu=(machine.process_cpu_seconds - then.process_cpu_seconds) / seconds,
        memory_used=machine.memory_total - machine.memory_available,
        process_memory=machine.process_memory,
        network_received=rate(machine.network_bytes, then.network_bytes, "received"),
        network_sent=rate(machine.network_bytes, then.network_bytes, "sent"),
        disk_read=rate(machine.disk_bytes, then.disk_bytes, "read"),
        disk_written=rate(machine.disk_bytes, then.disk_bytes, "written"),
        gpu_utilization=sum(used) / len(used) if used else None,
        gpu_memory_used=sum(memory) if memory else None,
        gpu_power=sum(power) if power else None,
        gpu_temperature=max((gpu.temperature for gpu in gpus if gpu.temperature is not None), default=None),
    )


def quantile(numbers: Distribution, q: float) -> float | None:
    found = numbers.quantile(q)
    return None if math.isnan(found) else found
