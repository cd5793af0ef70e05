"""What goes to a device and comes back, by way of pinned memory: copies that only those wait for who need them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

_WORDS = 1 << 12  # at first
_TORCH = {np.dtype(np.int64): torch.int64, np.dtype(np.float32): torch.float32}


class Mirror:
    """Words of the host, and of the device when they have been sent; on a CPU they are the same."""

    def __init__(self, words: int, device: torch.device) -> None:
        on_gpu = device.type == "cuda"
        self.host = torch.zeros(words, dtype=torch.int64, pin_memory=on_gpu)
        self.there = torch.zeros(words, dtype=torch.int64, device=device) if on_gpu else self.host
        self._sent = torch.cuda.Event() if on_gpu else None  # type: ignore[no-untyped-call]

    @property
    def is_shared(self) -> bool:
        return self.there is self.host

    def wait(self) -> None:
        """Until the host may write: the last copy may still be reading."""
        if self._sent is not None:
            self._sent.synchronize()

    def send(self, words: int) -> None:
        """The first of them. Kernels that are queued from now on see these."""
        if self._sent is not None:
            self.there[:words].copy_(self.host[:words], non_blocking=True)
            self._sent.record()


class Upload:
    """The small arrays of a step: all go in one copy before its kernels, which then need not wait for the host.

    The tensors that it gives hold the arrays once these are sent, until the next are added.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._mirror = Mirror(_WORDS, device)
        self._used = 0  # words
        self._is_sent = True

    def ints(self, values: Sequence[int]) -> Tensor:
        return self.add(np.array(values, np.int64))

    def floats(self, values: Sequence[float]) -> Tensor:
        return self.add(np.array(values, np.float32))

    def add(self, array: npt.NDArray[Any]) -> Tensor:
        if self._mirror.is_shared:
            return torch.from_numpy(array)
        if self._is_sent:
            self._mirror.wait()
            self._used, self._is_sent = 0, False
        words = -(-array.nbytes // 16) * 2
        if self._used + words > len(self._mirror.host):
            self._mirror.send(self._used)
            self._mirror = Mirror(2 * (self._used + words), self.device)
            self._used = 0
        place = slice(self._used, self._used + words)
        self._used += words
        self._mirror.host[place].numpy().view(array.dtype)[: array.size] = array
        tensor: Tensor = self._mirror.there[place].view(_TORCH[array.dtype])
        return tensor[: array.size]

    def send(self) -> None:
        if not self._is_sent:
            self._mirror.send(self._used)
            self._is_sent = True


def download(*tensors: Tensor) -> Callable[[], list[npt.NDArray[Any]]]:
    """Starts copies to the host. The function waits for these, and for nothing that is queued behind them."""
    if not tensors[0].is_cuda:
        return lambda: [tensor.numpy() for tensor in tensors]
    copies = [torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True) for tensor in tensors]
    for copy, tensor in zip(copies, tensors, strict=True):
        copy.copy_(tensor, non_blocking=True)
    arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
    arrived.record()

    def read() -> list[npt.NDArray[Any]]:
        arrived.synchronize()
        return [copy.numpy() for copy in copies]

    return read
