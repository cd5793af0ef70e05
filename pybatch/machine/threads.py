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


def set_threads(threads: int | None) -> int:
    """Sets the size of torch's thread pool, which the kernels share, and returns it.

    None: OMP_NUM_THREADS where it is set, else the usable physical cores. No result depends on it.
    """
    if threads is None:
        threads = torch.get_num_threads() if os.environ.get("OMP_NUM_THREADS") else usable_cores()
    elif isinstance(threads, bool) or not isinstance(threads, int) or threads < 1:
        raise ValueError(f"threads must be a positive integer or None, got {threads!r}")
    torch.set_num_threads(threads)
    return threads
