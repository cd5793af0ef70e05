"""Memory that a step reads much of. On a CPU it is in huge pages: with small ones, steps wait for address
translation."""

from __future__ import annotations

import mmap
from math import prod

import torch
from torch import Tensor

from pybatch.machine.memory import advice
from pybatch.machine.memory_nodes import place

HUGE_PAGE = 2 << 20
CHUNK = 256 << 20  # bytes mapped at a time for weights; of them, what is never written takes no memory
ALIGNMENT = 64  # as the kernels want packed weights


def empty_bytes(size: int, device: torch.device) -> Tensor:
    """[size] uint8, uninitialised; on a CPU it begins with a huge page. Raises MemoryError if there is no room."""
    if device.type != "cpu":
        return torch.empty(size, dtype=torch.uint8, device=device)
    try:
        memory = mmap.mmap(-1, size + HUGE_PAGE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except (OSError, OverflowError) as error:
        raise MemoryError(f"no memory for {size:,} bytes{advice(device)}") from error
    if hasattr(mmap, "MADV_HUGEPAGE"):  # Linux
        memory.madvise(mmap.MADV_HUGEPAGE)
    tensor = torch.frombuffer(memory, dtype=torch.uint8)
    place(tensor)
    start = -tensor.data_ptr() % HUGE_PAGE
    return tensor[start : start + size]


class WeightMemory:
    """Cuts a CPU's tensors from large maps, since most are smaller than a huge page. A map is freed with the last
    tensor in it."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._rest = torch.empty(0, dtype=torch.uint8)

    def empty(self, *shape: int, dtype: torch.dtype) -> Tensor:
        """An uninitialised tensor on the device, aligned to ALIGNMENT bytes."""
        if self._device.type != "cpu":
            return torch.empty(shape, dtype=dtype, device=self._device)
        size = prod(shape) * dtype.itemsize
        taken = -(-size // ALIGNMENT) * ALIGNMENT
        if taken > self._rest.numel():
            self._rest = empty_bytes(max(taken, CHUNK), self._device)
        tensor, self._rest = self._rest[:size], self._rest[taken:]
        return tensor.view(dtype).view(shape)
