"""Quantised GGUF tensors of all types that the kernels take; gguf.quants reads K-quants, but cannot make them."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from gguf import GGMLQuantizationType, quants
from torch import Tensor

from pybatch import ops


def random_blocks(kind: str, n: int, k: int, seed: int = 0) -> npt.NDArray[np.uint8]:
    """[n, bytes of a row]: any bits at all, but for scales and mins, which are random and finite."""
    block = ops.GGUF_BLOCKS[kind]
    generator = np.random.default_rng(seed)
    data = generator.integers(0, 256, (n, k // block.weights, block.bytes), dtype=np.uint8)
    for at in block.halves:
        data[..., at : at + 2] = generator.normal(0, 0.01, (*data.shape[:2], 1)).astype(np.float16).view(np.uint8)
    return data.reshape(n, -1)


def largest_blocks(kind: str, n: int, k: int) -> npt.NDArray[np.uint8]:
    """All codes the largest, and all scales 1."""
    block = ops.GGUF_BLOCKS[kind]
    data = np.full((n, k // block.weights, block.bytes), 0x80 if kind == "Q8_0" else 0xFF, np.uint8)
    for at in block.halves:
        data[..., at : at + 2] = np.array([1], np.float16).view(np.uint8)
    return data.reshape(n, -1)


def dequantized(data: npt.NDArray[np.uint8], kind: str) -> Tensor:
    return torch.from_numpy(quants.dequantize(data, GGMLQuantizationType[kind]))
