"""What a rank has of projections and norms; the ranks exchange what they have computed (see shards.py)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Unpack

import torch
from torch import Tensor

from pybatch.machine.ranks import Ranks
from pybatch.model.layers import Fused, Linear, NormOfAllHeads


@dataclass(frozen=True, slots=True)
class ShardedLinear:
    """This rank's columns of a projection whose input the ranks have in parts; out gets all columns."""

    linear: Linear  # packed, or of experts a stack; behind it adapters' changes
    width: int  # of this rank's columns
    ranks: Ranks

    def __call__(self, x: Tensor, out: Tensor, **fused: Unpack[Fused]) -> Tensor:
        first = self.ranks.rank * self.width
        part = out[:, first : first + self.width].clone()  # what is added to is there already
        return out.copy_(self.ranks.gather(self.linear(self.ranks.gather(x), part, **fused)))


@dataclass(frozen=True, slots=True)
class ShardedNorm:
    """A norm of all heads, of which the ranks have some each: each computes it of all."""

    norm: NormOfAllHeads
    ranks: Ranks
    kv_ranks: int  # that have the same heads of keys, one behind the other

    def __call__(self, q: Tensor, k: Tensor) -> None:
        size, rank = self.ranks.size, self.ranks.rank
        both = self.ranks.gather(torch.cat([q, k], dim=1)).view(len(q), size, -1)
        all_q, all_k = both.split_with_sizes([q.shape[1], k.shape[1]], dim=2)
        all_q, all_k = all_q.flatten(1), all_k[:, :: self.kv_ranks].flatten(1)
        self.norm(all_q, all_k)
        q.copy_(all_q.tensor_split(size, dim=1)[rank])
        k.copy_(all_k.tensor_split(size // self.kv_ranks, dim=1)[rank // self.kv_ranks])


@dataclass(frozen=True, slots=True)
class ShardedHead:
    """This rank's tokens of the vocabulary; out gets all logits."""

    linear: Linear | None  # None: of a small vocabulary there is nothing left for this one
    width: int  # of this rank's tokens
    padded: int  # of each rank's
    ranks: Ranks

    def __call__(self, x: Tensor, out: Tensor, **fused: Unpack[Fused]) -> Tensor:
        part = out.new_zeros(x.shape[0], self.padded)
        if self.linear is not None:
            self.linear(x, part[:, : self.width], **fused)
        return out.copy_(self.ranks.gather(part)[:, : out.shape[1]])
