"""The suites of tests/ops on kernels other than the CPU's: loaded again, with those in the place of pybatch.ops."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import torch

import pybatch.ops

SUITES = (
    "e4m3_cache", "test_activation", "test_attention", "test_copy_blocks", "test_embedding", "test_experts",
    "test_int4_cache", "test_kv_pruning", "test_linear_attention", "test_lora", "test_matmul", "test_matmul_gguf",
    "test_norm", "test_rope_kv_write", "test_sampling",
)  # fmt: skip
# The tensor cores take the weights of the softmax in the type of V, where the CPU keeps fp32.
ATTENTION_TOLERANCE = {torch.float32: 1e-5, torch.float16: 3e-3, torch.bfloat16: 2.4e-2}


@cache
def suite(name: str, ops: Any) -> ModuleType:
    """tests/ops/NAME.py with ops, which has the functions of pybatch.ops, in its place."""
    spec = importlib.util.spec_from_file_location(
        f"{type(ops).__name__}_{name}", Path(__file__).parent / "ops" / f"{name}.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    known = set(sys.modules)
    with mock.patch.object(pybatch, "ops", ops):
        spec.loader.exec_module(module)
    for helper in set(sys.modules) - known:  # what was first imported here is not for others if it has these ops
        if getattr(sys.modules[helper], "ops", None) is ops:
            del sys.modules[helper]
    if name == "test_attention":
        module.TOLERANCE = ATTENTION_TOLERANCE
    return module


def kernel_tests(ops: Any, *left_out: str) -> dict[str, Callable[..., None]]:
    """Every test that runs kernels, as TEST_SUITE, but for those left out by name."""
    found = {
        f"{test}_{name.removeprefix('test_')}": function
        for name in SUITES
        for test, function in vars(suite(name, ops)).items()
        if test.startswith("test_") and "host" not in {mark.name for mark in getattr(function, "pytestmark", ())}
    }
    unknown = set(left_out) - set(found)
    assert not unknown, f"there are no tests {unknown} to leave out"
    return {name: function for name, function in found.items() if name not in left_out}
