"""Low-rank adapters, another for each row."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from pybatch.ops.library import kernels
from pybatch.ops.matmul import STORE, Epilogue
from pybatch.ops.packing import PANEL


class Lora(NamedTuple):
    """The low-rank adapters of one projection, as add_lora takes them. A part is what one matrix of an adapter makes,
    such as q in a projection to q, k and v. R: their largest rank, in whole panels of 16. Of ranks beyond an adapter's
    own a is zero."""

    a: Tensor  # [adapters, parts, R / 16, K, 16] F, 64-byte aligned
    b: Tensor  # [adapters, panels, R, 16] of a's dtype, scaled; zeros beyond a panel's columns
    ranks: Tensor  # [adapters, parts] int32; 0: the adapter does not change the part
    panels: Tensor  # [panels, 3] int32, ascending: the first of up to 16 columns, how many, and their part


def pack_lora_a(a: Tensor, rank: int) -> Tensor:
    """Packs [r, K] F, the first matrix of an adapter, with zeros up to this rank: [rank / 16, K, 16]."""
    padded = torch.nn.functional.pad(a, (0, 0, 0, rank - len(a)))
    return padded.view(-1, PANEL, a.shape[1]).transpose(1, 2).contiguous()


def add_lora(
    x: Tensor,
    slots: Tensor,
    lora: Lora,
    product: Tensor,
    out: Tensor | None = None,
    *,
    epilogue: Epilogue = STORE,
) -> Tensor:
    """product += (x @ a^T) @ b^T by the adapter of each row (LoRA, Hu et al. 2021; of several in a batch, Chen et al.
    2023), summed in fp32 and rounded to product's dtype.

    x: [M, K] F; slots: [M] int32, the adapter of each row, negative: none, whose products stay as they are; product:
    [M, N] F, in place. With an epilogue that multiplies gate and up, product is that of weights which
    interleave_gate_up has interleaved, with a panel for each 16 columns, and out ([M, N / 2 at most], its dtype) gets
    what the epilogue makes of the sum, in all rows.
    """
    kernels.add_lora.default(x, slots, *lora, epilogue, product, out)
    return product if out is None else out
