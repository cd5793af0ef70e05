"""Processes that hold a model together: each has a share of the weights and of the KV cache."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor

TIMEOUT = timedelta(minutes=10)  # in which the slowest of them has to come to where the others wait


class RankError(RuntimeError):
    """Another rank has ended or does not answer: nothing can be computed any more."""


class Ranks:
    """This process among `size` of them, numbered from 0. gloo carries what they exchange, on GPUs NCCL.

    store: a torch.distributed store that all have open. why: what is known of an end, for the error.
    """

    def __init__(self, store: Any, rank: int, size: int, device: torch.device) -> None:
        from torch import distributed

        self.rank, self.size = rank, size
        self.why: Callable[[], str] = lambda: ""
        self._broken = ""
        self._group: Any
        if device.type == "cuda":
            self._group = distributed.ProcessGroupNCCL(store, rank, size, distributed.ProcessGroupNCCL.Options())
        else:
            self._group = distributed.ProcessGroupGloo(store, rank, size, TIMEOUT)

    def gather(self, part: Tensor) -> Tensor:
        """[rows, width] of each rank as [rows, size * width], rank 0's first. Raises RankError."""
        if self._broken:
            raise RankError(self._broken)
        rows, width = part.shape
        parts = part.new_empty(self.size, rows, width)
        try:
            sent = part.contiguous().view(torch.uint8)
            self._group.allgather([list(parts.view(torch.uint8))], [sent]).wait()
        except RuntimeError as error:
            raise RankError(self.end(str(error))) from error
        return parts.transpose(0, 1).reshape(rows, self.size * width)

    def end(self, reason: str) -> str:
        """Refuses what is asked from now on, and returns in which words: the ranks are no longer in step."""
        if not self._broken:
            told = self.why() or reason.splitlines()[0]
            self._broken = f"tensor_parallel_size: the {self.size} ranks no longer work together: {told}"
        return self._broken
