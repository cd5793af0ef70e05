"""How many threads the kernels use."""

from __future__ import annotations

import math
import os
from pathlib import Path

import psutil
import torch


def usable_cores() -> int:
    """Physical cores that this process may use: CPU affinity and a container's CPU quota count."""
    logical = os.cpu_count() or 1
    limits = [psutil.cpu_count(logical=False) or logical, logical]
    if hasattr(os, "sched_getaffinity"):
        limits.append(len(os.sched_getaffinity(0)))
    try:  # control groups v2: "<microseconds of CPU time> <per microseconds>", or "max <...>"
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        limits.append(math.ceil(int(quota) / int(period)))
    except (OSError, ValueError):
        pass
    return max(1, min(limits))


def most_threads() -> int:
    """The largest number of threads to allow. More than there are processors do not help, and OpenMP ends the process
    when a thread cannot be started."""
    return max(64, os.cpu_count() or 1)


def set_threads(threads: int | None) -> int:
    """Sets how many threads the kernels use, as torch's own ops do, and returns the number.

    None: OMP_NUM_THREADS where it is set, else the usable physical cores. No result depends on it. Raises ValueError
    for anything but None or an integer from 1 to most_threads().
    """
    source = "threads"
    if threads is None:
        threads = usable_cores()
        if os.environ.get("OMP_NUM_THREADS"):
            source, threads = "OMP_NUM_THREADS", torch.get_num_threads()
    if isinstance(threads, bool) or not isinstance(threads, int) or not 1 <= threads <= most_threads():
        raise ValueError(f"{source}: expected an integer from 1 to {most_threads()}, or None, got {threads!r}")
    torch.set_num_threads(threads)
    return threads


def _replace_threads_after_fork() -> None:
    """torch.set_num_threads also starts a pool beside OpenMP's. In a forked child the next call replaces it; without
    one, exit() waits for threads that do not exist."""
    torch.set_num_threads(torch.get_num_threads())


if hasattr(os, "register_at_fork"):  # OpenMP's own threads: see csrc/torch_ops/cpu.cpp
    os.register_at_fork(after_in_child=_replace_threads_after_fork)
