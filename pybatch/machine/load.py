"""How busy the machine and this process are. Sizes in bytes; times in seconds."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

from pybatch.machine.memory import free_memory

POWERCAP = Path("/sys/class/powercap")


@dataclass(frozen=True, slots=True)
class Disk:
    total: int
    free: int


@dataclass(frozen=True, slots=True)
class MachineLoad:
    """What counts up does so since the machine, or this process, began. Empty: the machine does not tell."""

    cpu_seconds: dict[str, float]  # by mode such as "user" and "idle", of all cores together
    memory_total: int
    memory_available: int  # of the machine, or of the tightest limit that the process is under
    process_cpu_seconds: float
    process_memory: int  # resident
    process_threads: int
    process_open_files: int
    disks: dict[str, Disk]  # by the paths that were asked for
    disk_bytes: dict[str, int]  # "read" and "written"
    network_bytes: dict[str, int]  # "received" and "sent", without what stays in the machine
    temperatures: dict[str, float]  # in degrees Celsius, by sensor
    energy: dict[str, float]  # joules, by what used them, such as "package-0"


def machine_load(paths: Sequence[Path] = (), powercap: Path = POWERCAP) -> MachineLoad:
    """Takes about a millisecond. paths: folders whose disks to look at. powercap: where Linux counts energy."""
    process = psutil.Process()
    with process.oneshot():
        times, memory = process.cpu_times(), process.memory_info()
        threads, files = process.num_threads(), process.num_fds()
    return MachineLoad(
        cpu_seconds=psutil.cpu_times()._asdict(),
        memory_total=psutil.virtual_memory().total,
        memory_available=free_memory(torch.device("cpu")),
        process_cpu_seconds=times.user + times.system,
        process_memory=memory.rss,
        process_threads=threads,
        process_open_files=files,
        disks=disks(paths),
        disk_bytes=disk_bytes(),
        network_bytes=network_bytes(),
        temperatures=temperatures(),
        energy=energy(powercap),
    )


def disks(paths: Sequence[Path]) -> dict[str, Disk]:
    found = {}
    for path in paths:
        with contextlib.suppress(OSError):  # the folder has gone
            usage = psutil.disk_usage(str(path))
            found[str(path)] = Disk(usage.total, usage.free)
    return found


def disk_bytes() -> dict[str, int]:
    counted = psutil.disk_io_counters()
    return {} if counted is None else {"read": counted.read_bytes, "written": counted.write_bytes}


def network_bytes() -> dict[str, int]:
    counted = [each for name, each in psutil.net_io_counters(pernic=True).items() if name != "lo"]
    return {"received": sum(each.bytes_recv for each in counted), "sent": sum(each.bytes_sent for each in counted)}


def temperatures() -> dict[str, float]:
    return {
        " ".join(filter(None, (chip, sensor.label or str(number)))): sensor.current
        for chip, sensors in psutil.sensors_temperatures().items()
        for number, sensor in enumerate(sensors)
    }


def energy(powercap: Path = POWERCAP) -> dict[str, float]:
    """By the processor's own counters (RAPL), which only root may read on most machines."""
    found = {}
    for zone in sorted(powercap.glob("*:*")):
        with contextlib.suppress(OSError, ValueError):
            microjoules = int((zone / "energy_uj").read_text())
            name = (zone / "name").read_text().strip()
            found[f"{name} {zone.name}" if name in found else name] = microjoules / 1e6
    return found
