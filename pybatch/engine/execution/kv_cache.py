"""The KV pool: one block-major tensor. A block holds all layers of block_size tokens contiguously."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor

from pybatch import ops
from pybatch.engine.config import EngineConfig
from pybatch.machine.huge_pages import empty_bytes
from pybatch.machine.memory import advice, free_memory
from pybatch.model.batch import LatentCache, LayerCache
from pybatch.model.config import LatentAttentionConfig
from pybatch.model.decoder import Decoder
from pybatch.model.key_shifts import KeyShift

_ALIGNMENT = 64  # bytes, of every layer of a block, its keys and its values
INT4 = torch.uint8  # what stands for int4 here: the type of bytes of two codes


class KvShape(NamedTuple):
    """Of one layer's keys and values."""

    kv_heads: int
    head_dim: int
    latent: bool = False  # no keys and values, but latents that are both


@dataclass(frozen=True, slots=True)
class LayerLayout:
    """One layer's part of a block: K [kv_heads, head_dim, block_size], then V [kv_heads, block_size, head_dim], then,
    for quantised types, the scales of K and of V, float16 [kv_heads, block_size] each. Of int4 K and V have
    head_dim / 2 bytes, packed as csrc/pybatch/kv_cache.h says, and scales are [kv_heads, groups, block_size]."""

    kv_heads: int
    head_dim: int
    block_size: int
    dtype: torch.dtype

    @property
    def _width(self) -> int:
        """Elements of dtype that a head of a token takes."""
        return self.head_dim // 2 if self.dtype == INT4 else self.head_dim

    @property
    def _scales(self) -> tuple[int, ...]:
        """The shape of a block's scales, () if it has none."""
        if self.dtype.itemsize > 1:
            return ()
        groups = (-(-self.head_dim // ops.INT4_GROUP),) if self.dtype == INT4 else ()
        return (self.kv_heads, *groups, self.block_size)

    @property
    def _values_bytes(self) -> int:
        return aligned(self.kv_heads * self._width * self.block_size * self.dtype.itemsize)

    @property
    def _scales_bytes(self) -> int:
        return math.prod(self._scales) * torch.float16.itemsize if self._scales else 0

    @property
    def num_bytes(self) -> int:
        return 2 * self._values_bytes + aligned(2 * self._scales_bytes)

    def cache(self, pool: Tensor, k_at: int) -> LayerCache:
        """Views of the layer's pieces, from byte k_at of a block on, over all blocks of pool, [num_blocks, block_bytes]
        uint8."""
        v_at = k_at + self._values_bytes
        scale_at = v_at + self._values_bytes
        heads, width, block = self.kv_heads, self._width, self.block_size
        k = piece(pool, k_at, (heads, width, block), self.dtype)
        v = piece(pool, v_at, (heads, block, width), self.dtype)
        if not self._scales:
            return LayerCache(k, v, None, None)
        k_scale = piece(pool, scale_at, self._scales, torch.float16)
        v_scale = piece(pool, scale_at + self._scales_bytes, self._scales, torch.float16)
        return LayerCache(k, v, k_scale, v_scale)


@dataclass(frozen=True, slots=True)
class LatentLayout:
    """One layer's part of a block, of latent attention: [block_size, width]."""

    width: int
    block_size: int
    dtype: torch.dtype

    @property
    def num_bytes(self) -> int:
        return aligned(self.block_size * self.width * self.dtype.itemsize)

    def cache(self, pool: Tensor, at: int) -> LatentCache:
        """A view of the layer's piece, likewise."""
        return LatentCache(piece(pool, at, (self.block_size, self.width), self.dtype))


@dataclass(frozen=True, slots=True)
class KvLayout:
    """The layout of a block: the parts of the layers that have keys and values of their own, in order."""

    shapes: tuple[KvShape, ...]
    block_size: int
    dtype: torch.dtype

    @property
    def layers(self) -> list[LayerLayout | LatentLayout]:
        rest = self.block_size, self.dtype
        return [
            LatentLayout(shape.head_dim, *rest) if shape.latent else LayerLayout(shape.kv_heads, shape.head_dim, *rest)
            for shape in self.shapes
        ]

    @property
    def quantised(self) -> bool:
        return self.dtype.itemsize == 1

    @property
    def block_bytes(self) -> int:
        return sum(layer.num_bytes for layer in self.layers)

    def caches(self, pool: Tensor) -> list[LayerCache | LatentCache]:
        """Each layer's views of pool, [num_blocks, block_bytes] uint8."""
        ends = accumulate(layer.num_bytes for layer in self.layers)
        return [layer.cache(pool, end - layer.num_bytes) for layer, end in zip(self.layers, ends, strict=True)]


class KvCache:
    """The pool's memory, and each layer's views of it. It is left uninitialised: pages that hold no block written so
    far take no memory, and kernels read no slot before it was written.

    shifts: how each layer's keys are kept, where they are quantised.

    Raises ValueError if there is not enough memory.
    """

    def __init__(
        self, layout: KvLayout, num_blocks: int, device: torch.device, shifts: Sequence[KeyShift] = ()
    ) -> None:
        self.layout = layout
        size = num_blocks * layout.block_bytes
        try:
            self.pool = empty_bytes(size, device).view(num_blocks, layout.block_bytes)
        except MemoryError as error:
            raise ValueError(
                f"num_kv_blocks: no memory for {num_blocks:,} KV blocks of {layout.block_bytes:,} bytes: give fewer, "
                f"or a smaller memory_utilization, max_num_seqs or max_model_len{advice(device)}"
            ) from error
        self.host_pool: Tensor | None = None
        self.layers = layout.caches(self.pool)
        if shifts:
            self.layers = [_shifted(cache, shift) for cache, shift in zip(self.layers, shifts, strict=True)]

    def make_host_pool(self, size: int) -> int:
        """For swap_out and swap_in, of at most so many bytes. Returns the number of its blocks. On a CPU it takes no
        memory until blocks are moved to it. Raises ValueError if there is not enough memory."""
        num_blocks = size // self.pool.shape[1]
        size = num_blocks * self.pool.shape[1]
        try:
            if self.pool.is_cuda:
                memory = torch.empty(size, dtype=torch.uint8, pin_memory=True)
            else:
                memory = empty_bytes(size, self.pool.device)
        except (MemoryError, RuntimeError) as error:
            raise ValueError(
                f"swap_space: no memory for {size:,} bytes; give less{advice(self.pool.device)}"
            ) from error
        self.host_pool = memory.view(num_blocks, self.pool.shape[1])
        return num_blocks

    def swap_out(self, pairs: list[tuple[int, int]]) -> None:
        """Copies block to host block for each pair."""
        if pairs:
            ops.swap_blocks(self.pool, self._host_pool(), torch.tensor(pairs, device=self.pool.device))

    def swap_in(self, pairs: list[tuple[int, int]]) -> None:
        """Copies host block to block for each pair."""
        if pairs:
            ops.swap_blocks(self._host_pool(), self.pool, torch.tensor(pairs, device=self.pool.device))

    def _host_pool(self) -> Tensor:
        assert self.host_pool is not None
        return self.host_pool

    def seconds_per_swap(self) -> float:
        """The time for a block to the host and back: the second time over, when all memory has been touched. The blocks
        are to be free, or to hold nothing on the host."""
        count = min(4, len(self.pool), len(self._host_pool()))
        spare = torch.empty_like(self.pool[:count])
        host = self._host_pool()[-count:]
        pairs = torch.arange(count, device=self.pool.device).repeat(2, 1).T.contiguous()
        for _ in range(2):
            begin = time.perf_counter()
            ops.swap_blocks(spare, host, pairs)
            ops.swap_blocks(host, spare, pairs)
            if spare.is_cuda:
                torch.cuda.synchronize(spare.device)
            seconds = time.perf_counter() - begin
        return seconds / count

    def fill(self, block: int, read: Callable[[memoryview], bool]) -> bool:
        """Has `read` write a block's bytes, on a GPU by way of the host. Returns what it does: if that is False the
        block's content is lost."""
        host = torch.empty_like(self.pool[block], device="cpu") if self.pool.is_cuda else self.pool[block]
        filled = read(host.numpy().data)
        if filled and self.pool.is_cuda:
            self.pool[block].copy_(host)
        return filled

    def block_bytes(self, block: int) -> bytes:
        return self.pool[block].cpu().numpy().tobytes()

    def copy_blocks(self, pairs: list[tuple[int, int]]) -> None:
        """Copies block source to block destination for each (source, destination)."""
        if pairs:
            ops.copy_blocks(self.pool, torch.tensor(pairs, dtype=torch.int64, device=self.pool.device))


def _shifted(cache: LayerCache | LatentCache, shift: KeyShift) -> LayerCache:
    assert isinstance(cache, LayerCache)
    return cache._replace(key_divisor=shift.divisor, key_offset=shift.offset)


def kv_layout(decoder: Decoder, config: EngineConfig) -> KvLayout:
    """The layout of this model's blocks. Raises ValueError for a dtype that the device does not support."""
    model = decoder.config
    name = config.kv_cache_dtype
    if name == "fp8" and decoder.device.type == "cpu":
        raise ValueError("kv_cache_dtype: 'fp8' runs on GPUs only; expected another on the CPU, such as 'int8'")
    named = {"auto": decoder.cache_dtype, "fp8": torch.float8_e4m3fn, "int4": INT4}
    dtype: torch.dtype = named[name] if name in named else getattr(torch, name)
    shapes = tuple(
        KvShape(each.num_kv_heads, each.head_dim, isinstance(each, LatentAttentionConfig)) for each in model.attentions
    )
    if dtype.itemsize == 1 and any(shape.latent for shape in shapes):
        raise ValueError(
            f"kv_cache_dtype: {name!r} is not for {model.architecture}, whose cache keeps latents; expected auto or a "
            f"type of 16 or 32 bits"
        )
    return KvLayout(shapes, config.block_size, dtype)


def capacity(decoder: Decoder, config: EngineConfig, block_bytes: int, *, reserved: int = 0) -> tuple[int, int]:
    """(max_model_len, num_kv_blocks), such that one sequence always fits by itself. block_bytes: of a block, with what
    a draft model keeps for it. reserved: bytes of the memory that are for recurrent states and for what steps take.

    Raises ValueError if max_model_len does not fit the model or the pool, or the memory not even one block.
    """
    context = decoder.context_length
    if config.max_model_len is not None and config.max_model_len > context:
        raise ValueError(
            f"max_model_len: expected at most the model's context of {context}, got {config.max_model_len}"
        )
    length = config.max_model_len or context
    longest = -(-length // config.block_size)
    blocks = config.num_kv_blocks
    if blocks is None:
        memory = int(free_memory(decoder.device) * config.memory_utilization) - reserved
        blocks = min(memory // block_bytes, config.max_num_seqs * longest)
        if blocks == 0:
            raise ValueError(
                f"memory_utilization: {config.memory_utilization} of the free memory is {memory:,} bytes, "
                f"less than one KV block of {block_bytes:,} bytes; raise it, or the limit on memory"
                f"{advice(decoder.device)}"
            )
    if blocks < longest:
        if config.max_model_len is not None:
            raise ValueError(
                f"max_model_len: {length} tokens need {longest} KV blocks of {config.block_size} tokens, "
                f"but the pool has {blocks}"
            )
        length = blocks * config.block_size
    return length, blocks


def aligned(num_bytes: int) -> int:
    return -(-num_bytes // _ALIGNMENT) * _ALIGNMENT


def piece(pool: Tensor, at: int, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    elements = pool.view(dtype)
    strides = [1]
    for extent in reversed(shape[1:]):
        strides.insert(0, strides[0] * extent)
    return elements.as_strided(
        (pool.shape[0], *shape), (elements.stride(0), *strides), elements.storage_offset() + at // dtype.itemsize
    )
