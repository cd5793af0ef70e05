"""How many threads the kernels use, and where they run."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import psutil
import torch

from pybatch import _C
from pybatch.machine.control_groups import ROOT, control_groups
from pybatch.machine.number_lists import allowed_numbers, numbers


def usable_cores(root: Path = ROOT) -> int:
    """Physical cores that this process may use: CPU affinity and a container's CPU quota count, of which a part of a
    core is worth a thread. root: where /proc and /sys are found."""
    logical = os.cpu_count() or 1
    limits = [psutil.cpu_count(logical=False) or logical, logical]
    if hasattr(os, "sched_getaffinity"):
        limits.append(len(os.sched_getaffinity(0)))
    limits += [math.ceil(quota) for quota in _quotas(root)]
    return max(1, min(limits))


def _quotas(root: Path) -> Iterator[float]:
    """In cores, of the control groups that have one."""
    for group in control_groups("cpu", root):
        if group.version == 2:
            quota, _, period = group.read("cpu.max").strip().partition(" ")  # microseconds, or "max", of each period
        else:
            quota, period = (group.read(f"cpu.cfs_{name}_us").strip() for name in ("quota", "period"))  # -1: none
        if quota.isdecimal() and period.isdecimal():
            yield int(quota) / int(period)


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


def bind_threads(processors: str, root: Path = ROOT) -> list[int]:
    """Binds the kernels' threads to processors, one each, and returns these: thread i has the i-th. The thread that
    calls kernels counts as the first, but is left to the system.

    processors: a list such as "0-7,16", or "all": those that the process may use, at first one of each core. Raises
    ValueError for any other than these.
    """
    if not hasattr(os, "sched_getaffinity"):
        raise ValueError(f"bind_threads: expected None, since this system has no CPU affinity, got {processors!r}")
    allowed = os.sched_getaffinity(0)
    try:
        of_all = processors == "all"
        chosen = _one_of_each_core_first(allowed, root) if of_all else allowed_numbers(processors, allowed)
    except (ValueError, AttributeError, TypeError):
        chosen = []
    if not chosen:
        raise ValueError(
            "bind_threads: expected 'all' or a list such as 0-7,16 of processors that this process may use, which are "
            f"{', '.join(map(str, sorted(allowed)))}; got {processors!r}"
        )
    _C.bind_threads(chosen)
    return chosen


def _one_of_each_core_first(processors: Iterable[int], root: Path) -> list[int]:
    turns = {}
    for number in sorted(processors):
        try:
            siblings = root / f"sys/devices/system/cpu/cpu{number}/topology/thread_siblings_list"
            turns[number] = list(numbers(siblings.read_text())).index(number)
        except (OSError, ValueError):
            turns[number] = 0
    return sorted(turns, key=lambda number: (turns[number], number))


def _replace_threads_after_fork() -> None:
    """torch.set_num_threads also starts a pool beside OpenMP's. In a forked child the next call replaces it; without
    one, exit() waits for threads that do not exist."""
    torch.set_num_threads(torch.get_num_threads())


if hasattr(os, "register_at_fork"):  # OpenMP's own threads: see csrc/torch_ops/cpu.cpp
    os.register_at_fork(after_in_child=_replace_threads_after_fork)
