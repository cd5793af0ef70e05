"""Weights that stay in the host's memory, each layer's on the device only while it runs.

Such layers are spread evenly over the model. Two buffers on the device take turns: while one of the layers computes
from its buffer, the weights of the next are copied into the other, on a stream of their own. The first two copies begin
with the step, and it ends with none under way, so that a graph of a step has its copies in it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor

from pybatch.model.errors import ModelError
from pybatch.model.layers import Packed
from pybatch.model.smoothquant import PackedWhenCalled
from pybatch.model.tensors import changed

T = TypeVar("T")  # a decoder's layer
GIB = 1 << 30
BUFFERS = 2
ALIGNMENT = 256  # bytes, of each weight in a buffer
SMALLEST = 1 << 20  # bytes, of a piece of the host's memory


class HostLayers:
    """The layers of a decoder whose weights are on the host. Those are the weights of projections: norms, biases and
    scales, which are small, stay on the device.

    sizes: bytes of the weights of each, as `weights_size` counts them, by its number in the decoder, in order.
    """

    def __init__(self, sizes: dict[int, int], device: torch.device) -> None:
        self._device_module: Any = torch.get_device_module(device)
        self._device = device
        self._turns = {index: turn for turn, index in enumerate(sizes)}
        self._host = [host_memory(size, device) for size in sizes.values()]
        self._used = [0] * len(sizes)
        self.buffers = [torch.empty(max(sizes.values()), dtype=torch.uint8, device=device) for _ in range(BUFFERS)]
        self._copying = self._device_module.Stream(device)
        self._filled = [self._device_module.Event() for _ in range(BUFFERS)]
        self._read = [self._device_module.Event() for _ in range(BUFFERS)]

    def keep(self, index: int, layer: T) -> T:
        """A layer that has been made on the device: with its weights on the host, if it is one of these."""
        if index not in self._turns:
            return layer
        keep = partial(self._keep, self._turns[index])

        def kept(linear: Packed | PackedWhenCalled) -> Packed | PackedWhenCalled:
            if isinstance(linear, PackedWhenCalled):
                linear.then = keep
                return linear
            return keep(linear)

        return changed(layer, Packed | PackedWhenCalled, kept)  # type: ignore[arg-type, no-any-return]

    def _keep(self, turn: int, linear: Packed) -> Packed:
        weight = linear.weight.contiguous()
        start = self._used[turn]
        self._used[turn] = start + aligned(weight.nbytes)
        source, end = weight.view(-1).view(torch.uint8), start + weight.nbytes
        for first, piece in pieces(self._host[turn]):
            low, high = max(start, first), min(end, first + len(piece))
            if low < high:
                piece[low - first : high - first].copy_(source[low - start : high - start])
        there = self.buffers[turn % BUFFERS][start:end].view(weight.dtype).view(weight.shape)
        return replace(linear, weight=there)

    def in_turn(self, layers: Sequence[T]) -> Iterator[T]:
        """A decoder's layers, each with its weights on the device for what is queued until the next is asked for."""
        computing = self._device_module.current_stream(self._device)
        for place, read in enumerate(self._read):
            read.record(computing)
            self._fetch(place)
        for index, layer in enumerate(layers):
            turn = self._turns.get(index)
            if turn is None:
                yield layer
                continue
            self._filled[turn % BUFFERS].wait(computing)
            yield layer
            self._read[turn % BUFFERS].record(computing)
            self._fetch(turn + BUFFERS)

    def _fetch(self, turn: int) -> None:
        """Queues the copy of a layer's weights behind what reads its buffer now."""
        if turn >= len(self._host):
            return
        buffer = self.buffers[turn % BUFFERS][: self._used[turn]]
        self._read[turn % BUFFERS].wait(self._copying)
        with self._device_module.stream(self._copying):
            for first, piece in pieces(self._host[turn]):
                part = buffer[first : first + len(piece)]
                part.copy_(piece[: len(part)], non_blocking=True)
        self._filled[turn % BUFFERS].record(self._copying)


def host_memory(size: int, device: torch.device) -> list[Tensor]:
    """Pieces of at least so many bytes together, pinned for a GPU: torch rounds what it pins up to a power of two, and
    each is one."""
    wanted = -(-size // SMALLEST) * SMALLEST
    powers = [1 << bit for bit in reversed(range(wanted.bit_length())) if wanted >> bit & 1]
    return [torch.empty(power, dtype=torch.uint8, pin_memory=device.type == "cuda") for power in powers]


def pieces(memory: Sequence[Tensor]) -> Iterator[tuple[int, Tensor]]:
    """Each with the number of bytes before it."""
    first = 0
    for piece in memory:
        yield first, piece
        first += len(piece)


def check_offload(gib: float, device: str) -> None:
    """Raises ValueError where a model that runs on this kind of device cannot have so many GiB on the host."""
    if gib and device == "cpu":
        raise ValueError(
            "cpu_offload_gb: expected 0 on the CPU, whose memory has all weights (weights_cache_dir maps them from a "
            f"file), got {gib}"
        )


def choose_layers(layers: Sequence[object], most: float) -> dict[int, int]:
    """HostLayers' sizes, for a decoder's layers as they are planned, of whose weights at most so many GiB are to be on
    the host. Raises ModelError where that makes no room."""
    if not most:
        return {}
    sizes = [weights_size(layer) for layer in layers]
    chosen = spread(sizes, int(most * GIB))
    if len(chosen) <= BUFFERS:
        least = sum(sorted(sizes)[: BUFFERS + 1]) / GIB
        raise ModelError(
            f"cpu_offload_gb: expected at least the weights of {BUFFERS + 1} layers, {least:.2g} GiB, since those of "
            f"{BUFFERS} are on the device at a time, got {most}"
        )
    return {index: sizes[index] for index in chosen}


def device_bytes(weights: int, on_host: Mapping[int, int]) -> int:
    """Of so many bytes of weights those on the device, where layers of these sizes are on the host."""
    return weights - sum(on_host.values()) + BUFFERS * max(on_host.values(), default=0)


def weights_size(layer: object) -> int:
    """Bytes of the weights of its projections in a buffer."""
    found: dict[int, int] = {}

    def count(linear: Packed) -> Packed:
        found[id(linear)] = aligned(linear.weight.nbytes)
        return linear

    changed(layer, Packed, count)  # type: ignore[arg-type]
    return sum(found.values())


def spread(sizes: Sequence[int], most: int) -> list[int]:
    """As many layers as come to at most so many bytes, at even distances; behind each but the last are none, or others
    in whose time the next is copied."""
    count = len(sizes)
    for number in range(count, 0, -1):
        chosen = [(i + 1) * count // number - 1 for i in range(number)]
        if sum(sizes[index] for index in chosen) <= most:
            return chosen
    return []


def aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT
