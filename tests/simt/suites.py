"""The modules of tests/ops, loaded a second time so that their ops are the CUDA kernels on the SIMT layer."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import ModuleType
from unittest import mock

import torch

import pybatch.ops
from simt.device import SimtOps

OPS = SimtOps()
# The tensor cores take the weights of the softmax in the type of V, where the CPU keeps fp32.
ATTENTION_TOLERANCE = {torch.float32: 1e-5, torch.float16: 3e-3, torch.bfloat16: 2.4e-2}


@cache
def suite(name: str) -> ModuleType:
    """tests/ops/NAME.py, with OPS in the place of pybatch.ops."""
    path = Path(__file__).parent.parent / "ops" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"simt_{name}", path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    with mock.patch.object(pybatch, "ops", OPS):
        spec.loader.exec_module(module)
    if name == "test_attention":
        module.TOLERANCE = ATTENTION_TOLERANCE
    return module


@contextmanager
def running(module: ModuleType, ops: SimtOps) -> Iterator[None]:
    """Lets a suite's helpers run other kernels, such as mutated ones."""
    with mock.patch.object(module, "ops", ops):
        yield
