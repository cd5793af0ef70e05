"""Recordings of what a step calls, to be replayed in one call."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from pybatch.ops import CpuGraph

# Rows of the graphs on a GPU. Beyond, launches take less time than the kernels that they launch.
_SIZES = (1, 2, 4, *range(8, 64, 8), *range(64, 128, 16), *range(128, 257, 32))


class Graph(Protocol):
    def replay(self) -> None: ...


class Recorder(Protocol):
    """at_start: graphs are recorded before an engine serves, for these sizes; if not, when they are first needed."""

    at_start: bool

    def sizes(self, most: int) -> list[int]:
        """For batches of up to so many rows, ascending; a batch is filled up to the next of them."""

    def record(self, call: Callable[[], Tensor]) -> tuple[Graph, Tensor]:
        """A graph of what it does, and its result, which a replay writes again."""


class CpuRecorder:
    """Recording takes as long as a step, and a graph no memory to speak of."""

    at_start = False

    def sizes(self, most: int) -> list[int]:
        return list(range(1, most + 1))

    def record(self, call: Callable[[], Tensor]) -> tuple[Graph, Tensor]:
        graph = CpuGraph()
        with graph:
            result = call()
        return graph, result


class CudaRecorder:
    """All graphs share one pool of memory, since no two run at a time, and are captured on one stream of the device:
    torch's own is that of the process's first capture, whichever device it was on."""

    at_start = True

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool = torch.cuda.graph_pool_handle()
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def sizes(self, most: int) -> list[int]:
        most = min(most, _SIZES[-1])
        return [*_SIZES[: bisect_left(_SIZES, most)], most]

    def record(self, call: Callable[[], Tensor]) -> tuple[Graph, Tensor]:
        call()  # kernels are loaded when first run, not in a capture
        torch.cuda.synchronize(self._device)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
            result = call()
        return graph, result


def recorder_for(device: torch.device) -> Recorder:
    return CudaRecorder(device) if device.type == "cuda" else CpuRecorder()
