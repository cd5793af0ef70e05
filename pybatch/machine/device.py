"""Where a model runs: names of devices, and what is free there."""

from __future__ import annotations

from pathlib import Path

import psutil
import torch

from pybatch import _C


def why_no_cuda() -> str:
    """Why the CUDA kernels are not in use; empty where they are."""
    if _C.why_no_cuda:
        return f"this pybatch was built without CUDA kernels: {_C.why_no_cuda}"
    if torch.version.cuda is None:
        return f"this torch ({torch.__version__}) is built without CUDA"
    return "" if torch.cuda.is_available() else "torch sees no CUDA device"


def find_device(name: str) -> torch.device:
    """The device of that name: "cpu", "cuda" (torch's current one), "cuda:N", or "auto": a GPU if there is one.

    Raises ValueError that says what was expected, or why CUDA is not to be had.
    """
    if name == "auto":
        name = "cpu" if why_no_cuda() else "cuda"
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise ValueError(f"device: expected 'auto', 'cpu', 'cuda' or 'cuda:N', got {name!r}")
    if device.type == "cpu":
        return device
    if reason := why_no_cuda():
        raise ValueError(f"device: expected 'cpu' or 'auto', got {name!r}, but {reason}")
    index, count = device.index, torch.cuda.device_count()
    if index is None:
        index = torch.cuda.current_device()
    if index >= count:
        raise ValueError(f"device: expected at most 'cuda:{count - 1}', got {name!r}")
    return torch.device("cuda", index)


def free_memory(device: torch.device) -> int:
    """Bytes that may still be used there; the machine's: or of the container (cgroup v2) where that is less."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    available = int(psutil.virtual_memory().available)
    group = Path("/sys/fs/cgroup")
    try:
        limit = (group / "memory.max").read_text().strip()
        used = int((group / "memory.current").read_text())
    except (OSError, ValueError):
        return available
    return available if limit == "max" else min(available, max(int(limit) - used, 0))
