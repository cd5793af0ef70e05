"""The suites of tests/ops on the CUDA kernels: the same tests, with pybatch.ops replaced by the ops of device.py."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from unittest import mock

import pybatch.ops
import torch
from simt.device import SimtOps

SUITES = {
    "test_attention": ["test_matches_float64"],
    "test_copy_blocks": ["test_copies_within_a_pool", "test_swaps_between_pools"],
    "test_matmul": [
        "test_dense_is_the_sum",
        "test_int8_is_the_sum",
        "test_a_row_alone_has_the_bits_it_has_in_any_batch",
        "test_a_row_that_is_not_finite_stays_alone",
        "test_w8a8_of_a_zero_row_is_the_bias",
        "test_w8a8_sums_exactly_at_the_extremes",
        "test_nothing_in_nothing_out",
        "test_an_empty_sum_is_the_bias",
    ],
}
# The tensor cores take the weights of the softmax in the type of V, where the CPU keeps fp32.
ATTENTION_TOLERANCE = {torch.float32: 1e-5, torch.float16: 3e-3, torch.bfloat16: 2.4e-2}
OPS = SimtOps()


def on_simt(suite: str) -> ModuleType:
    """A second copy of a module of tests/ops, made while pybatch.ops is the SIMT layer's."""
    path = Path(__file__).parent.parent / "ops" / f"{suite}.py"
    spec = importlib.util.spec_from_file_location(f"simt_{suite}", path)
    assert spec is not None and spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    with mock.patch.object(pybatch, "ops", OPS):
        spec.loader.exec_module(module)
    return module


def tests_of(suite: str, names: list[str]) -> dict[str, Callable[..., None]]:
    module = on_simt(suite)
    if suite == "test_attention":
        module.TOLERANCE = ATTENTION_TOLERANCE
    return {f"{name}_{suite.removeprefix('test_')}": getattr(module, name) for name in names}


for suite, names in SUITES.items():
    globals().update(tests_of(suite, names))
