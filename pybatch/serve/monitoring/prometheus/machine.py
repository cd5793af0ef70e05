"""The machine's metrics. What a machine does not tell is not there."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from pybatch.machine.gpus import GpuLoad, gpu_loads
from pybatch.machine.load import MachineLoad, machine_load
from pybatch.serve.monitoring.prometheus.families import Labels, by, counter, gauge

GPU_GAUGES = (
    ("gpu_memory_total_bytes", "Memory of a GPU.", "memory_total"),
    ("gpu_memory_used_bytes", "Its memory in use, by all programs.", "memory_used"),
    ("gpu_utilization_ratio", "The fraction of time in which a kernel ran on it.", "utilization"),
    ("gpu_power_watts", "The power that it draws.", "power"),
    ("gpu_power_limit_watts", "The most that it may draw.", "power_limit"),
    ("gpu_temperature_celsius", "Its temperature.", "temperature"),
)


class MachineCollector(Collector):
    """paths: folders whose disks to look at."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = paths

    def collect(self) -> Iterator[Metric]:
        yield from machine_families(machine_load(self.paths))
        yield from gpu_families(gpu_loads())


def machine_families(load: MachineLoad) -> Iterator[Metric]:
    sizes = {path: disk.total for path, disk in load.disks.items()}
    free = {path: disk.free for path, disk in load.disks.items()}
    for family in (
        gauge("machine_memory_total_bytes", "The machine's memory.", [({}, load.memory_total)]),
        gauge("machine_memory_available_bytes", "What this process may still use.", [({}, load.memory_available)]),
        gauge("process_memory_bytes", "This process's resident memory.", [({}, load.process_memory)]),
        gauge("process_open_files", "This process's open files and sockets.", [({}, load.process_open_files)]),
        gauge("process_threads", "This process's threads.", [({}, load.process_threads)]),
        counter("process_cpu_seconds", "Processor time of this process.", [({}, load.process_cpu_seconds)]),
        counter("machine_cpu_seconds", "Processor time of the machine.", by("mode", load.cpu_seconds)),
        counter("machine_disk_bytes", "Bytes to and from disks.", by("direction", load.disk_bytes)),
        counter("machine_network_bytes", "Bytes to and from networks.", by("direction", load.network_bytes)),
        counter("machine_energy_joules", "Energy that processors used.", by("zone", load.energy)),
        gauge("machine_temperature_celsius", "What sensors tell.", by("sensor", load.temperatures)),
        gauge("disk_total_bytes", "Size of a folder's disk.", by("path", sizes)),
        gauge("disk_free_bytes", "What is free of it.", by("path", free)),
    ):
        if family.samples:
            yield family


def gpu_families(gpus: Sequence[GpuLoad]) -> Iterator[Metric]:
    for name, help, field in GPU_GAUGES:
        known = [(labels_of(gpu), value) for gpu in gpus if (value := getattr(gpu, field)) is not None]
        if known:
            yield gauge(name, help, known)
    energy = [(labels_of(gpu), gpu.energy) for gpu in gpus if gpu.energy is not None]
    if energy:
        yield counter("gpu_energy_joules", "Energy that a GPU used.", energy)


def labels_of(gpu: GpuLoad) -> Labels:
    return {"gpu": str(gpu.index), "name": gpu.name}
