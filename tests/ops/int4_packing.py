"""int4 KV caches, as csrc/pybatch/kv_cache.h lays them out, packed and unpacked with torch."""

from __future__ import annotations

import torch
from torch import Tensor

from pybatch.ops import INT4_GROUP


def groups_of(head_dim: int) -> list[slice]:
    return [slice(first, min(first + INT4_GROUP, head_dim)) for first in range(0, head_dim, INT4_GROUP)]


def by_element(scale: Tensor, head_dim: int) -> Tensor:
    """Scales [..., groups] repeated for each element of their groups: [..., head_dim]."""
    return scale.repeat_interleave(INT4_GROUP, -1)[..., :head_dim]


def _words(codes: Tensor) -> Tensor:
    """[..., n] codes, from the lowest bits on, in one integer."""
    places = torch.arange(codes.shape[-1], dtype=torch.int64) * 4
    return ((codes.long() & 15) << places).sum(-1)


def _codes(words: Tensor, n: int) -> Tensor:
    codes = (words[..., None] >> (torch.arange(n) * 4)) & 15
    return torch.where(codes > 7, codes - 16, codes)


def pack_k(codes: Tensor) -> Tensor:
    """[..., head_dim, block_size] codes in [-8, 7] to [..., head_dim / 2, block_size] bytes."""
    *lead, dim, size = codes.shape
    eight = codes.unflatten(-2, (dim // 8, 8)).transpose(-1, -2)
    words = _words(eight[..., [0, 2, 4, 6, 1, 3, 5, 7]])
    return words.to(torch.uint32).contiguous().view(torch.uint8).reshape(*lead, dim // 2, size)


def unpack_k(packed: Tensor) -> Tensor:
    *lead, half, size = packed.shape
    words = packed.contiguous().reshape(*lead, half // 4, size * 4).view(torch.uint32).long()
    eight = _codes(words, 8)[..., [0, 4, 1, 5, 2, 6, 3, 7]]
    return eight.transpose(-1, -2).flatten(-3, -2)


def pack_v(codes: Tensor) -> Tensor:
    """[..., block_size, head_dim] codes in [-8, 7] to [..., block_size, head_dim / 2] bytes."""
    *lead, size, dim = codes.shape
    units = [_words(codes[..., group].unflatten(-1, (4, -1)).transpose(-1, -2)) for group in groups_of(dim)]
    quads = torch.cat(units, -1).unflatten(-2, (size // 4, 4)).transpose(-1, -2)
    return quads.to(torch.uint16).contiguous().view(torch.uint8).reshape(*lead, size, dim // 2)


def unpack_v(packed: Tensor) -> Tensor:
    *lead, size, half = packed.shape
    words = packed.contiguous().reshape(*lead, size // 4, half * 4).view(torch.uint16).long()
    words = words.unflatten(-1, (half // 2, 4)).transpose(-1, -2).flatten(-3, -2)  # [..., size, words of a token]
    parts = [
        _codes(words[..., group.start // 4 : group.stop // 4], 4).transpose(-1, -2).flatten(-2)
        for group in groups_of(2 * half)
    ]
    return torch.cat(parts, -1)
