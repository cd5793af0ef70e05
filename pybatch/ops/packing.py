"""Weights in the order in which the matmuls read them: panels of 16 columns."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

PANEL = 16  # columns in one panel of packed weights

_CACHED = 1 << 19  # elements whose fp32 copies stay in cache while they are worked on


def packed_dense_shape(n: int, k: int, dtype: torch.dtype) -> tuple[int, ...]:
    """Of pack_dense's result for [n, k] weights."""
    panels, group = -(-n // PANEL), 4 // dtype.itemsize
    return (panels, k, PANEL) if group == 1 else (panels, -(-k // group), PANEL, group)


FLOAT8_BLOCK = 128  # columns that share a scale, of float8 weights in blocks


def pack_dense(weight: Tensor) -> Tensor:
    """Packs [N, K] F weights for matmul_dense, zero-padded: [ceil(N/16), K, 16], or of 16 bits, with K in pairs,
    [ceil(N/16), ceil(K/2), 16, 2]."""
    n, k = weight.shape
    packed = weight.new_empty(packed_dense_shape(n, k, weight.dtype))
    if not packed.numel():
        return packed
    words = packed.view(torch.int32).view(packed.shape[:3])  # a column's group of four bytes in one piece
    words.copy_(_words(weight, 4 // weight.element_size()).view(packed.shape[0], PANEL, -1).transpose(1, 2))
    return packed


def _words(weight: Tensor, group: int) -> Tensor:
    """[N, K] weights, zero-padded to whole panels and groups, a group of four bytes as one int32."""
    n, k = weight.shape
    if n % PANEL or k % group or weight.storage_offset() % group:  # torch views words where its storage has them
        weight = torch.nn.functional.pad(weight, (0, -k % group, 0, -n % PANEL))
    return weight.contiguous().view(torch.int32)


def interleave_gate_up(gate: Tensor, up: Tensor) -> Tensor:
    """16 rows of gate, then 16 of up, and so on, padded with zeros: the weights that SILU_MUL and GELU_TANH_MUL take.

    gate, up: [N, ...]. Returns [2 * ceil(N/16) * 16, ...].
    """
    panels = -(-len(gate) // PANEL)
    both = gate.new_zeros(2, panels * PANEL, *gate.shape[1:])
    both[0, : len(gate)], both[1, : len(up)] = gate, up
    interleaved = both.view(2, panels, PANEL, *gate.shape[1:]).transpose(0, 1)
    return interleaved.reshape(2 * panels * PANEL, *gate.shape[1:])


def quantize_int8(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Symmetric int8 per output channel: [N, K] F -> q [N, K] int8 in [-127, 127], scale [N] float32, w ~ q * scale.
    A scale below the smallest normal number is 0, as are the row's q."""
    n, k = weight.shape
    q, scale = weight.new_empty(n, k, dtype=torch.int8), weight.new_empty(n, dtype=torch.float32)
    rows = max(1, _CACHED // max(1, k))
    for first in range(0, n, rows):
        part = slice(first, first + rows)
        w = weight[part].float()
        largest = w.abs().amax(dim=1) / 127
        scale[part] = torch.where(largest < torch.finfo(torch.float32).tiny, 0.0, largest)  # NaN stays
        inverse = torch.where(scale[part] > 0, 1 / scale[part], 0.0)
        q[part] = (w * inverse[:, None]).round_().clamp_(-127, 127)
    return q, scale


def pack_int8(q: Tensor) -> Tensor:
    """Packs [N, K] int8 weights for the int8 matmuls: [ceil(N/16), ceil(K/4) + 1, 16, 4] int8, zero-padded.

    The last group of a panel holds its 16 column sums as int32 (for u8 x s8 dot products).
    """
    n, k = q.shape
    panels, groups = -(-n // PANEL), -(-k // 4)
    packed = q.new_empty(panels, groups + 1, PANEL, 4)
    words = packed.view(torch.int32).view(panels, groups + 1, PANEL)  # a column's group of four in one piece
    words[:, :groups] = _words(q, 4).view(panels, PANEL, groups).transpose(1, 2)
    sums = q.sum(1, dtype=torch.int32)
    words[:, groups] = torch.nn.functional.pad(sums, (0, -n % PANEL)).view(panels, PANEL)
    return packed


def pack_float8(codes: Tensor, block_scales: Tensor | None = None) -> Tensor:
    """Packs [N, K] float8_e4m3fn weights for matmul_w8a16: [ceil(N/16), ceil(K/4) + 1, 16, 4] float8_e4m3fn,
    zero-padded. Kernels take its two NaN for +-480.

    block_scales: [N, ceil(K/128)] float32, of weights that each block of 128 columns of a row scales further. Then
    [ceil(N/16), ceil(K/128), 33, 16, 4], where the last group of a block has its scales.
    """
    if block_scales is None:
        packed = pack_int8(codes.view(torch.int8))
        packed[:, -1] = 0
        return packed.view(torch.float8_e4m3fn)
    n, k = codes.shape
    shape = panels, blocks, groups, _, _ = packed_float8_blocks_shape(n, k)
    padding = (0, blocks * FLOAT8_BLOCK - k, 0, panels * PANEL - n)
    words = torch.nn.functional.pad(codes.view(torch.int8), padding).contiguous().view(torch.int32)
    packed = words.new_empty(shape[:-1])
    packed[:, :, :-1] = words.view(panels, PANEL, blocks, groups - 1).permute(0, 2, 3, 1)
    scales = torch.nn.functional.pad(block_scales.float(), (0, 0, 0, padding[3])).view(torch.int32)
    packed[:, :, -1] = scales.view(panels, PANEL, blocks).transpose(1, 2)
    return packed[..., None].view(torch.float8_e4m3fn)


def packed_float8_blocks_shape(n: int, k: int) -> tuple[int, int, int, int, int]:
    """The shape of pack_float8 with block_scales."""
    return -(-n // PANEL), -(-k // FLOAT8_BLOCK), FLOAT8_BLOCK // 4 + 1, PANEL, 4


class GgufBlock(NamedTuple):
    """The memory layout of a quantised type of GGUF files; names and layouts are ggml's."""

    weights: int  # of a row, in one block
    bytes: int
    halves: tuple[int, ...]  # offsets of its 16-bit floats, scale first
    words: slice  # bytes that are packed as words of four; the others follow them, two at a time if there are as many
    dtype: torch.dtype = torch.uint8  # packed; int8 where a code names a number of a code book


GGUF_BLOCKS = {
    "Q4_0": GgufBlock(32, 18, (0,), slice(2, 18)),
    "Q4_1": GgufBlock(32, 20, (0, 2), slice(4, 20)),
    "Q5_0": GgufBlock(32, 22, (0,), slice(2, 22)),
    "Q5_1": GgufBlock(32, 24, (0, 2), slice(4, 24)),
    "Q8_0": GgufBlock(32, 34, (0,), slice(2, 34)),
    "Q2_K": GgufBlock(256, 84, (80, 82), slice(80)),
    "Q3_K": GgufBlock(256, 110, (108,), slice(108)),
    "Q4_K": GgufBlock(256, 144, (0, 2), slice(4, 144)),
    "Q5_K": GgufBlock(256, 176, (0, 2), slice(4, 176)),
    "Q6_K": GgufBlock(256, 210, (208,), slice(208)),
    "IQ4_NL": GgufBlock(32, 18, (0,), slice(2, 18), torch.int8),
    "IQ4_XS": GgufBlock(256, 136, (0,), slice(4, 136), torch.int8),
    "MXFP4": GgufBlock(32, 17, (), slice(1, 17), torch.int8),  # its scale is a byte, a power of two
}


def packed_gguf_shape(n: int, k: int, kind: str) -> tuple[int, int, int]:
    """Of N rows of K weights, packed by pack_gguf."""
    block = GGUF_BLOCKS[kind]
    return -(-n // PANEL), k // block.weights, PANEL * block.bytes


def pack_gguf(data: Tensor, kind: str) -> Tensor:
    """Packs the rows of a quantised GGUF tensor for matmul_gguf, bit for bit; kind: one of GGUF_BLOCKS.

    data: [N, K / weights * bytes] uint8, as in the file. Returns [ceil(N/16), K / weights, 16 * bytes], of the type's
    dtype: that and the bytes tell types apart.
    """
    block = GGUF_BLOCKS[kind]
    n, panels = data.shape[0], -(-data.shape[0] // PANEL)
    if n < panels * PANEL:
        data = torch.nn.functional.pad(data, (0, 0, 0, panels * PANEL - n))
    blocks = data.view(panels, PANEL, -1, block.bytes).transpose(1, 2)
    start, stop, _ = block.words.indices(block.bytes)
    words = blocks[..., start:stop].contiguous().view(torch.int32).transpose(2, 3).flatten(2)
    others = torch.cat([blocks[..., :start], blocks[..., stop:]], dim=3)
    others = others.view(*others.shape[:3], -1, min(2, others.shape[3])).transpose(2, 3).flatten(2)
    return torch.cat([words.view(torch.uint8), others], dim=2).view(block.dtype)
