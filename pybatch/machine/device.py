"""Where a model runs: names of devices."""

from __future__ import annotations

import torch

from pybatch import _C


def why_no_cuda() -> str:
    """Why the CUDA kernels are not in use; empty where they are."""
    if reason := _C.why_no_cuda():
        return reason
    if torch.version.cuda is None:
        return f"this torch ({torch.__version__}) is built without CUDA"
    return "" if torch.cuda.is_available() else "torch sees no CUDA device"


def find_device(name: str) -> torch.device:
    """The device of that name: "cpu", "cuda" (torch's current one), "cuda:N", or "auto": a GPU if there is one.

    Raises ValueError that says what was expected, or why CUDA is unavailable.
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
        return torch.device("cpu")
    if reason := why_no_cuda():
        raise ValueError(f"device: expected 'cpu' or 'auto', got {name!r}, but {reason}")
    index, count = device.index, torch.cuda.device_count()
    if index is None:
        index = torch.cuda.current_device()
    if index >= count:
        raise ValueError(f"device: expected at most 'cuda:{count - 1}', got {name!r}")
    return torch.device("cuda", index)
