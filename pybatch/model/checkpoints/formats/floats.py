"""Matrices of floats of 8 and 4 bits with scales: fp8 by tensor, row or block, NVFP4 and MXFP4.

MXFP4 is a GGUF type too. The numbers of the others lie closer together near zero, so that no type of blocks holds them.
Where fp8 has a scale for each row, or for 128 columns of it, kernels widen it as it is; the others become Q8_0.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from pybatch import ops
from pybatch.model.checkpoints.formats.matrices import (
    BLOCK,
    BlockMatrix,
    ChannelRows,
    Made,
    by_row,
    looked_up,
    nibbles,
    requantized,
)
from pybatch.model.errors import ModelError
from pybatch.model.rows import Rows

E2M1 = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0])


def float8(values: Rows, scale: Tensor, name: str, block: tuple[int, int] | None = None) -> Rows:
    """values: [N, K]. scale: one number, or [N], or [N, groups of columns], or of blocks of the size given."""
    n, k = values.shape
    if block is not None and list(scale.shape) == [-(-n // block[0]), -(-k // block[1])]:
        height, width = block
    else:
        scale = by_row(scale, n, k, name)
        height, width = 1, k // scale.shape[1]
    if values.dtype == torch.float8_e4m3fn and (width >= k or width == ops.FLOAT8_BLOCK):
        codes = Made(values, lambda rows: _e4m3(values[rows], name), (n, k), torch.uint8)
        return ChannelRows(codes, scale.float().repeat_interleave(height, dim=0)[:n])

    table = torch.arange(256, dtype=torch.uint8).view(values.dtype).float()

    def weights(rows: slice) -> Tensor:
        each = scale[torch.arange(rows.start, rows.stop) // height].float()
        return looked_up(table, values[rows].view(torch.uint8)) * each.repeat_interleave(width, dim=1)[:, :k]

    return requantized(Made(values, weights, (n, k), torch.bfloat16), "float8 weights", name)


def _e4m3(values: Tensor, name: str) -> Tensor:
    """Their bits."""
    bits = values.view(torch.uint8)
    if bool(((bits & 127) == 127).any()):
        raise ModelError(f"{name}: expected float8 weights that are numbers, got nan")
    return bits


def nvfp4(codes: Rows, scales: Callable[[slice], Tensor], group: int, name: str) -> Rows:
    """codes: [N, K / 2] uint8, two columns in a byte, the first in its lower half. scales: of rows, [n, K / group]."""
    return requantized(_float4(codes, scales, group), "nvfp4 weights", name)


def mxfp4(codes: Rows, exponents: Rows) -> Rows:
    """codes: as for nvfp4. exponents: [N, K / 32] uint8, E8M0. Blocks have the same, in another order of columns."""
    n, k = codes.shape[0], codes.shape[1] * 2

    def blocks(rows: slice) -> Tensor:
        scale, packed = exponents[rows].view(torch.uint8), nibbles(_columns(codes[rows]))
        return torch.cat([scale[..., None], packed.view(*scale.shape, -1)], dim=2).flatten(1)

    floats = _float4(codes, lambda rows: _powers(exponents[rows]), BLOCK)
    size = k // BLOCK * ops.GGUF_BLOCKS["MXFP4"].bytes
    return BlockMatrix(floats, "MXFP4", Made(codes, blocks, (n, size), torch.uint8), "")


def _float4(codes: Rows, scales: Callable[[slice], Tensor], group: int) -> Rows:
    def weights(rows: slice) -> Tensor:
        return looked_up(E2M1, _columns(codes[rows])) * scales(rows).repeat_interleave(group, dim=1)

    return Made(codes, weights, (codes.shape[0], codes.shape[1] * 2), torch.bfloat16)


def _columns(octets: Tensor) -> Tensor:
    return torch.stack([octets & 15, octets >> 4], dim=-1).flatten(1)


def _powers(scale: Tensor) -> Tensor:
    """Of two, by their exponents (E8M0)."""
    return (scale.view(torch.uint8).int() << 23).view(torch.float32)
