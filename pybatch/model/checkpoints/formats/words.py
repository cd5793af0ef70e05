"""Codes of a few bits in words of 32, as quantised checkpoints have them."""

from __future__ import annotations

import torch
from torch import Tensor


def unpack(words: Tensor, bits: int) -> Tensor:
    """[n, W] int32 -> [n, W * 32 / bits] uint8: the codes from each word's lowest bit up."""
    octets = words.contiguous().view(torch.uint8)
    if bits == 8:
        return octets
    if bits not in (1, 2, 4):  # codes may lie across words
        each_bit = torch.stack([octets >> at & 1 for at in range(8)], dim=-1).flatten(1)
        count = each_bit.shape[1] // bits
        codes = each_bit[:, : count * bits].view(-1, count, bits)
        return (codes << torch.arange(bits, dtype=torch.uint8)).sum(-1, dtype=torch.uint8)
    mask = (1 << bits) - 1
    return torch.stack([octets >> at & mask for at in range(0, 8, bits)], dim=-1).flatten(1)
