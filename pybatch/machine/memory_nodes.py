"""On which of a machine's memory nodes (NUMA) weights and KV lie.

The kernels take tiles of a matrix as they come, so any thread may read any weight: no node is nearer to a page than
another, and what serves is that all nodes' memory is read at once. By default the system takes a page from the node of
the thread that first writes to it, or wherever there is room.
"""

from __future__ import annotations

import mmap
import re
from pathlib import Path

import torch
from torch import Tensor

from pybatch import _C
from pybatch.machine.control_groups import ROOT
from pybatch.machine.number_lists import allowed_numbers, numbers

_chosen: list[int] = []


def interleave_memory(nodes: str | None, root: Path = ROOT) -> list[int]:
    """Has weights and KV that are allocated from now on come from these nodes, a page of each in turn, and returns
    them. None: from where the system takes them, as at first.

    nodes: a list such as "0-1", or "all": those that the process may use. Raises ValueError for any other, or where
    the system does not let this process choose. root: where /proc is found.
    """
    global _chosen
    if nodes is None:
        _chosen = []
        return []
    try:
        status = (root / "proc/self/status").read_text()
        allowed = [number for text in re.findall(r"^Mems_allowed_list:(.*)$", status, re.M) for number in numbers(text)]
    except (OSError, ValueError):
        allowed = []
    if not allowed:
        raise ValueError(f"interleave_memory: expected None, since this system has no memory nodes, got {nodes!r}")
    try:
        chosen = allowed if nodes == "all" else sorted({*allowed_numbers(nodes, allowed)})
    except (ValueError, AttributeError, TypeError):
        chosen = []
    if not chosen:
        raise ValueError(
            "interleave_memory: expected 'all' or a list such as 0-1 of memory nodes that this process may use, which "
            f"are {', '.join(map(str, allowed))}; got {nodes!r}"
        )
    page = torch.frombuffer(mmap.mmap(-1, mmap.PAGESIZE), dtype=torch.uint8)
    try:
        _C.interleave_memory(page.data_ptr(), page.numel(), chosen)
    except RuntimeError as error:  # in a container, such calls may be forbidden
        raise ValueError(f"interleave_memory: expected None, since the system refuses: {error}") from error
    _chosen = chosen
    return chosen


def place(memory: Tensor) -> None:
    """Places bytes that have not been written to, from the first whole page on, as was chosen."""
    start = -memory.data_ptr() % mmap.PAGESIZE
    if _chosen and memory.numel() > start:
        _C.interleave_memory(memory.data_ptr() + start, memory.numel() - start, _chosen)
