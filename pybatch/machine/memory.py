"""How much memory this process has used, and may still use: the machine's, and that of every limit it is under."""

from __future__ import annotations

import ctypes
import re
import resource
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

from pybatch.machine.control_groups import ROOT, control_groups, read

UNLIMITED = 1 << 60  # cgroup v1 says so in a number near 2^63


@dataclass(frozen=True, slots=True)
class Limit:
    """Sizes in bytes."""

    name: str  # such as "memory.max of the control group /job" or "ulimit -v"
    size: int
    used: int  # without what the kernel gives back when asked: cached files

    @property
    def free(self) -> int:
        return max(self.size - self.used, 0)


def free_memory(device: torch.device, root: Path = ROOT) -> int:
    """Bytes that may still be used on a device. On a CPU: what the machine has left (cached files count as free), or
    what the tightest limit leaves if that is less. root: where /proc and /sys are found."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    limit = tightest_limit(root)
    available = int(psutil.virtual_memory().available)
    return available if limit is None else min(available, limit.free)


def tightest_limit(root: Path = ROOT) -> Limit | None:
    """The limit that leaves least, among the process's resource limits (ulimit -v and -d) and those of its control
    groups, versions 1 and 2, each with all the groups around it."""
    return min([*_resource_limits(root), *_group_limits(root)], key=lambda limit: limit.free, default=None)


def advice(device: torch.device, root: Path = ROOT) -> str:
    """For the end of an error about memory: which limit to raise, if one leaves less than the machine has."""
    limit = tightest_limit(root) if device.type == "cpu" else None
    if limit is None or limit.free >= psutil.virtual_memory().available:
        return ""
    sizes = f"{limit.size / 1e6:,.1f} MB and leaves {limit.free / 1e6:,.1f} MB"
    return f"; {limit.name} allows this process {sizes}: raise it, or ask for less"


def _resource_limits(root: Path) -> Iterator[Limit]:
    pages = [int(field) for field in read(root / "proc/self/statm").split()]
    for kind, name, field in ((resource.RLIMIT_AS, "ulimit -v", 0), (resource.RLIMIT_DATA, "ulimit -d", 5)):
        size = resource.getrlimit(kind)[0]
        if size != resource.RLIM_INFINITY and len(pages) > field:
            yield Limit(name, size, pages[field] * resource.getpagesize())


def _group_limits(root: Path) -> Iterator[Limit]:
    for group in control_groups("memory", root):
        files, usage, inactive, active = {
            1: (("memory.limit_in_bytes",), "memory.usage_in_bytes", "total_inactive_file", "total_active_file"),
            2: (("memory.max", "memory.high"), "memory.current", "inactive_file", "active_file"),
        }[group.version]
        used = group.number(usage)
        if used is None:
            continue
        stat = group.read("memory.stat")
        cached = sum(int(size) for size in re.findall(rf"^(?:{inactive}|{active}) (\d+)$", stat, re.MULTILINE))
        for file in files:
            size = group.number(file)
            if size is not None and size < UNLIMITED:
                yield Limit(f"{file} of the control group {group.name}", size, max(used - cached, 0))


def peak_memory() -> int:
    """The peak of this process's resident memory, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # Linux counts in KiB


def trim_memory() -> None:
    """Gives back to the system what the C library keeps of freed memory; glibc keeps tens of MB after much work."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
