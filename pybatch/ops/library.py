"""The libraries of kernels, loaded; imported before any other module of ops."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_PACKAGE = Path(__file__).parents[1]

torch.ops.load_library(_PACKAGE / "libpybatch_cpu.so")  # type: ignore[no-untyped-call]

from pybatch import _C  # noqa: E402  (links against the library above)

ISA: str = _C.chosen_isa()  # raises ValueError if PYBATCH_ISA cannot run here

CUDA: bool = not _C.why_no_cuda() and torch.cuda.is_available()  # the ops take CUDA tensors too
if CUDA:
    torch.ops.load_library(_PACKAGE / "libpybatch_cuda.so")  # type: ignore[no-untyped-call]

CpuGraph = _C.Graph  # `with graph:` records CPU ops instead of running them; graph.replay() runs them

kernels = torch.ops.pybatch


def _register_fake(name: str) -> None:
    """Ops write into given tensors, so with fake tensors there is nothing to compute. But torch also calls the fake for
    real tensors with a meta tensor among them."""
    parameters = [argument.name for argument in getattr(kernels, name).default._schema.arguments]

    def fake(*args: Any, **kwargs: Any) -> None:
        given = {**dict(zip(parameters, args, strict=False)), **kwargs}
        devices = {key: value.device for key, value in given.items() if isinstance(value, Tensor)}
        expected = next((device for device in devices.values() if device.type != "meta"), None)
        if expected is None:
            return
        for argument, device in devices.items():
            if device != expected and (device.type == "meta" or name != "swap_blocks"):
                raise RuntimeError(f"{argument}: expected a tensor on {expected}, got one on {device}")

    torch.library.register_fake(f"pybatch::{name}", fake)


for _name in torch._C._dispatch_get_all_op_names():
    if _name.startswith("pybatch::"):
        _register_fake(_name.removeprefix("pybatch::"))
