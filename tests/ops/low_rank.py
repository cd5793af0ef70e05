"""Random low-rank adapters of a projection, packed as ops.add_lora takes them and plain."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pybatch import ops


@dataclass
class Adapters:
    """parts: of the projection, the columns of the product that each has. matrices[adapter][part]: [r, K] and [N of the
    part, r], in float64; None where the adapter does not change it."""

    packed: ops.Lora
    parts: list[Tensor]
    matrices: list[list[tuple[Tensor, Tensor] | None]]

    def changed(self, x: Tensor, slots: Tensor, product: Tensor) -> Tensor:
        """What add_lora is to make of the product, in float64."""
        out = product.double().clone()
        for row, slot in enumerate(slots.tolist()):
            for columns, each in zip(self.parts, self.matrices[slot] if slot >= 0 else [], strict=False):
                if each is not None:
                    out[row, columns] += each[1] @ (each[0] @ x[row].double())
        return out


def random_adapters(
    widths: list[int], k: int, ranks: list[int], *, dtype: torch.dtype = torch.float32, gated: bool = False,
    seed: int = 0,
) -> Adapters:  # fmt: skip
    """Of these ranks (0: an adapter that changes nothing), parts of such widths side by side, or gate and up by turns
    of 16 columns. Every third part of an adapter is not changed."""
    random = torch.Generator().manual_seed(seed)
    most = max(-(-max([1, *ranks]) // 16) * 16, 16)
    starts = [sum(widths[:i]) for i in range(len(widths))]
    panels = [
        (2 * i + 16 * part if gated else starts[part] + i, min(16, width - i), part, i)
        for part, width in enumerate(widths)
        for i in range(0, width, 16)
    ]
    panels.sort()
    places = [[c + j for c, n, of, _ in panels if of == part for j in range(n)] for part in range(len(widths))]
    a = torch.zeros(len(ranks), len(widths), most // 16, k, 16, dtype=dtype)
    b = torch.zeros(len(ranks), len(panels), most, 16, dtype=dtype)
    own = torch.zeros(len(ranks), len(widths), dtype=torch.int32)
    matrices: list[list[tuple[Tensor, Tensor] | None]] = []
    for adapter, rank in enumerate(ranks):
        matrices.append([])
        for part, width in enumerate(widths):
            if not rank or (adapter + part) % 3 == 2:
                matrices[-1].append(None)
                continue
            left = torch.randn(width, rank, generator=random).div(rank**0.5).to(dtype)
            right = torch.randn(rank, k, generator=random).div(max(k, 1) ** 0.5).to(dtype)
            own[adapter, part] = rank
            a[adapter, part] = ops.pack_lora_a(right, most)
            for i, (_, columns, of, first) in enumerate(panels):
                if of == part:
                    b[adapter, i, :rank, :columns] = left[first : first + columns].t()
            matrices[-1].append((right.double(), left.double()))
    table = torch.tensor([panel[:3] for panel in panels], dtype=torch.int32).reshape(-1, 3)
    return Adapters(ops.Lora(a, b, own, table), [torch.tensor(each).long() for each in places], matrices)
