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

if not ops.CUDA:
    pytest.skip("needs a GPU, and pybatch built with CUDA", allow_module_level=True)

SUITES = {  # what looks at results; checks of values are the CPU's alone
    "test_norm": [
        "test_rms_norm",
        "test_layer_norm",
        "test_rms_norm_rounds_before_the_weight_as_the_models_were_trained",
        "test_rows_stand_alone",
        "test_out_and_residual_may_be_strided_and_out_may_be_x",
    ],
    "test_activation": [
        "test_activation",
        "test_extreme_gates",
        "test_infinite_gates_tend_to_their_limits_and_nan_stays",
        "test_rows_stand_alone",
        "test_out_may_be_strided",
    ],
    "test_embedding": ["test_float_tables", "test_int8_tables", "test_infinities_and_nan_are_copied"],
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
    "test_rope_kv_write": [
        "test_matches_float64",
        "test_is_what_transformers_computes",
        "test_head_norm_rounds_as_transformers_does",
        "test_int8_rounds_half_to_even",
        "test_int8_of_a_zero_head_is_zero",
    ],
    "test_copy_blocks": ["test_copies_within_a_pool", "test_swaps_between_pools"],
    "test_attention": ["test_matches_float64"],
    "test_sampling": [
        "test_even_logits_show_the_uniform_number",
        "test_draws",
        "test_draws_follow_the_softmax",
        "test_greedy_takes_the_largest_and_of_those_the_lowest_id",
        "test_nan_counts_as_minus_infinity",
        "test_a_tiny_temperature_is_greedy",
        "test_sampled_rows_stand_alone",
        "test_adjust_logits",
        "test_a_bias_of_minus_infinity_bans_a_token",
        "test_neutral_penalties_leave_every_bit",
        "test_adjusted_rows_stand_alone",
        "test_token_logprobs",
        "test_all_of_a_large_vocabulary_in_order",
        "test_logprobs_of_what_is_no_number",
        "test_logprob_rows_stand_alone",
        "test_logits_may_be_strided",
    ],
}
# The tensor cores take the weights of the softmax in the type of V, where the CPU keeps fp32.
ATTENTION_TOLERANCE = {torch.float32: 1e-5, torch.float16: 3e-3, torch.bfloat16: 2.4e-2}


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
                    last = sum((n - 1) * stride for n, stride in zip(x.shape, x.stride(), strict=True))
                    span = torch.as_strided(x, (last + 1,), (1,)).cuda()
                    moved.append((x, torch.as_strided(span, x.shape, x.stride())))
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
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    with mock.patch("pybatch.ops", OnCuda()):
        spec.loader.exec_module(module)
    return module


for suite, names in SUITES.items():
    module = on_cuda(suite)
    if suite == "test_attention":
        module.TOLERANCE = ATTENTION_TOLERANCE
    for name in names:
        globals()[f"{name}_{suite.removeprefix('test_')}"] = getattr(module, name)
