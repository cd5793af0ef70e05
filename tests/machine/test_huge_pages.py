"""Tensors of memory in huge pages lie apart, aligned, and stay as long as anybody holds them."""

from __future__ import annotations

import gc

import pytest
import torch

from pybatch.machine.huge_pages import ALIGNMENT, CHUNK, HUGE_PAGE, WeightMemory, empty_bytes


@pytest.mark.parametrize("dtype", [torch.uint8, torch.bfloat16, torch.float32])
def test_tensors_are_aligned_and_lie_apart(dtype: torch.dtype) -> None:
    memory = WeightMemory(torch.device("cpu"))
    tensors = [memory.empty(3, rows, 5, dtype=dtype).fill_(rows) for rows in range(20)]
    for rows, tensor in enumerate(tensors):
        assert tensor.shape == (3, rows, 5)
        assert tensor.data_ptr() % ALIGNMENT == 0
        assert (tensor == rows).all()


def test_a_tensor_outlives_the_memory_it_was_cut_from() -> None:
    memory = WeightMemory(torch.device("cpu"))
    first, large = memory.empty(100, dtype=torch.float32).fill_(1), memory.empty(CHUNK + 1, dtype=torch.uint8)
    large[-1] = 7
    del memory
    gc.collect()
    assert (first == 1).all()
    assert large[-1] == 7


def test_bytes_begin_with_a_huge_page() -> None:
    memory = empty_bytes(HUGE_PAGE + 5, torch.device("cpu"))
    assert memory.shape == (HUGE_PAGE + 5,)
    assert memory.data_ptr() % HUGE_PAGE == 0
    memory.fill_(3)
