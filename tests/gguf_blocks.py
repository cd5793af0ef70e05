"""Quantised GGUF tensors; gguf.quants reads all types, but cannot make K-quants and some others.

The package gguf is the reference alone: where it is missing, tests that compare with it are skipped, and what makes
blocks for kernels still runs.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

from pybatch import ops

OTHERS = {"IQ2_XXS": 0, "IQ2_XS": 0, "IQ2_S": 0, "IQ3_XXS": 0, "IQ3_S": 0, "IQ1_S": 0, "TQ1_0": 52, "TQ2_0": 64}


def other_blocks(kind: str, n: int, k: int, seed: int = 0) -> npt.NDArray[np.uint8]:
    """As random_blocks, of a type that no kernel takes: OTHERS, with where its scale is."""
    from gguf import GGMLQuantizationType
    from gguf.constants import GGML_QUANT_SIZES

    weights, size = GGML_QUANT_SIZES[GGMLQuantizationType[kind]]
    generator = np.random.default_rng(seed)
    data = generator.integers(0, 256, (n, k // weights, size), dtype=np.uint8)
    scale = generator.normal(0, 0.01, (n, k // weights, 1)).astype(np.float16)
    data[..., OTHERS[kind] : OTHERS[kind] + 2] = scale.view(np.uint8)
    return data.reshape(n, -1)


def random_blocks(kind: str, n: int, k: int, seed: int = 0) -> npt.NDArray[np.uint8]:
    """[n, bytes of a row]: any bits at all, but for scales and mins, which are random and of weights' usual size."""
    block = ops.GGUF_BLOCKS[kind]
    generator = np.random.default_rng(seed)
    data = generator.integers(0, 256, (n, k // block.weights, block.bytes), dtype=np.uint8)
    for at in block.halves:
        data[..., at : at + 2] = generator.normal(0, 0.01, (*data.shape[:2], 1)).astype(np.float16).view(np.uint8)
    if kind == "MXFP4":
        data[..., 0] = generator.integers(116, 122, data.shape[:2])
    return data.reshape(n, -1)


def largest_blocks(kind: str, n: int, k: int) -> npt.NDArray[np.uint8]:
    """All codes the largest, and all scales 1 or the largest multiple of it."""
    block = ops.GGUF_BLOCKS[kind]
    code = {"Q8_0": 0x80, "IQ4_NL": 0, "IQ4_XS": 0}.get(kind, 0xFF)  # -128, and -127 of the code book
    data = np.full((n, k // block.weights, block.bytes), code, np.uint8)
    for at in block.halves:
        data[..., at : at + 2] = np.array([1], np.float16).view(np.uint8)
    if kind == "MXFP4":
        data[..., 0] = 128
    return data.reshape(n, -1)


def dequantized(data: npt.NDArray[np.uint8], kind: str) -> Tensor:
    gguf = pytest.importorskip("gguf")
    return torch.from_numpy(gguf.quants.dequantize(data, gguf.GGMLQuantizationType[kind]))
