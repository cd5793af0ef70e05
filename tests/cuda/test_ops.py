"""The suites of tests/ops on a GPU: the same tests, with every tensor of a call taken there and back."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor

from pybatch import ops

pytestmark = pytest.mark.skipif(not ops.CUDA, reason="needs a GPU, and pybatch built with CUDA")

SUITES = {
    "test_norm": ["test_rms_norm", "test_layer_norm"],
    "test_activation": None,
    "test_embedding": None,
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
    "test_rope_kv_write": None,
    "test_copy_blocks": ["test_copies_within_a_pool", "test_swaps_between_pools"],
    "test_attention": ["test_matches_float64"],
    "test_sampling": None,
}


class OnCuda:
    """pybatch.ops for CPU tensors, by way of the GPU: what an op changes in place is copied back."""

    def __getattr__(self, name: str) -> Any:
        op = getattr(ops, name)
        return self._through_the_gpu(op) if hasattr(torch.ops.pybatch, name) else op

    @staticmethod
    def _through_the_gpu(op: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            moved: list[tuple[Tensor, Tensor]] = []

            def to_gpu(x: Any) -> Any:
                if not isinstance(x, Tensor):
                    return x
                if x.numel() == 0:
                    moved.append((x, x.cuda()))
                else:  # with its strides, so that rows and blocks that lie apart do so there
                    span = torch.as_strided(x, (sum((n - 1) * s for n, s in zip(x.shape, x.stride())) + 1,), (1,))
                    moved.append((x, torch.as_strided(span.cuda(), x.shape, x.stride())))
                return moved[-1][1]

            def to_cpu(x: Any) -> Any:
                if isinstance(x, tuple):
                    return tuple(map(to_cpu, x))
                return next((cpu for cpu, gpu in moved if gpu is x), x.cpu()) if isinstance(x, Tensor) else x

            result = op(*map(to_gpu, args), **{name: to_gpu(x) for name, x in kwargs.items()})
            for cpu, gpu in moved:
                cpu.copy_(gpu)
            return to_cpu(result)

        return call


def on_cuda(suite: str) -> ModuleType:
    """A second copy of a module of tests/ops, made while pybatch.ops goes by way of the GPU."""
    path = Path(__file__).parent.parent / "ops" / f"{suite}.py"
    spec = importlib.util.spec_from_file_location(f"cuda_{suite}", path)
    assert spec is not None and spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    with mock.patch("pybatch.ops", OnCuda()):
        spec.loader.exec_module(module)
    return module


for suite, names in SUITES.items():
    module = on_cuda(suite)
    for name in names or [name for name in vars(module) if name.startswith("test_")]:
        globals()[f"{name}_{suite.removeprefix('test_')}"] = getattr(module, name)
