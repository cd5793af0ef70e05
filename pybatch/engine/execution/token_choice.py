"""Which tokens of a KV cache are kept, by the attention that they have had."""

from __future__ import annotations

import torch
from torch import Tensor

from pybatch.engine.kv_policies import HeavyHitters, SnapKV


def chosen(policy: SnapKV | HeavyHitters, mass: Tensor) -> Tensor:
    """The tokens to keep for each layer and KV head, in ascending order: [layers, kv_heads, kept] int64.

    mass: [layers, kv_heads, tokens] float32. Of equal sums the earlier token's counts for more.
    """
    if isinstance(policy, SnapKV):
        last, count, mass = policy.observed, policy.budget, _pooled(mass[..., : -policy.observed], policy.pooling)
    else:
        last, count, mass = policy.recent, policy.heavy, mass[..., : -policy.recent]
    best = mass.sort(dim=-1, descending=True, stable=True).indices[..., :count].sort(dim=-1).values
    latest = torch.arange(mass.shape[-1], mass.shape[-1] + last, device=mass.device)
    return torch.cat([best, latest.expand(*best.shape[:-1], -1)], dim=-1)


def _pooled(mass: Tensor, kernel: int) -> Tensor:
    """Sums over `kernel` neighbours, added in ascending order (their average is in the same order)."""
    padded = torch.nn.functional.pad(mass, (kernel // 2, kernel // 2))
    total = torch.zeros_like(mass)
    for shift in range(kernel):
        total += padded[..., shift : shift + mass.shape[-1]]
    return total
