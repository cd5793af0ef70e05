"""Which experts a token goes to."""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple

import torch
from torch import Tensor

from pybatch.ops.library import kernels
from pybatch.ops.matmul import Experts


class Scoring(IntEnum):
    """What a router's logits become: the scores by which experts are chosen, and which then weight them."""

    SOFTMAX = 0
    SIGMOID = 1
    TOP_K_SOFTMAX = 2  # chosen by the logits themselves; the weights are the softmax of those chosen


class Routing(NamedTuple):
    """The experts that each of T tokens goes to, out of E. Made by route_experts."""

    ids: Tensor  # [T, k] int32, ascending in each row
    weights: Tensor  # [T, k] float32
    starts: Tensor  # [E + 1] int32: where each expert's tokens begin in `order`
    order: Tensor  # [T * k] int32: the tokens of expert 0, of expert 1, ..., ascending
    places: Tensor  # [T, k] int32: where each is in `order`

    @classmethod
    def empty(cls, tokens: int, experts: int, top_k: int, device: torch.device | None = None) -> Routing:
        def make(*shape: int, dtype: torch.dtype = torch.int32) -> Tensor:
            return torch.empty(shape, dtype=dtype, device=device)

        weights = make(tokens, top_k, dtype=torch.float32)
        return cls(make(tokens, top_k), weights, make(experts + 1), make(tokens * top_k), make(tokens, top_k))

    def gathered(self) -> Experts:
        """For a matmul that takes rows of tokens, [T, K], to rows of pairs of a token and an expert, [T * k, N]."""
        return Experts(self.starts, self.order)

    def summed(self) -> Experts:
        """For a matmul of such rows, [T * k, K], whose products are weighted and summed to rows of tokens, [T, N]."""
        return Experts(self.starts, None, self.places, self.weights)


def route_experts(
    logits: Tensor,
    top_k: int,
    *,
    bias: Tensor | None = None,
    expert_scale: Tensor | None = None,
    scoring: Scoring = Scoring.SOFTMAX,
    groups: int = 1,
    top_groups: int = 1,
    group_best: int = 1,
    normalize: bool = False,
    scale: float = 1.0,
    out: Routing | None = None,
) -> Routing:
    """The top_k experts of each token by score, of equal ones the lowest; their weights; the tokens sorted by expert.

    logits: [T, E] float32, E at most 1024. scoring: of the logits, in fp32. bias: [E] float32, added to the scores for
    the choice alone (DeepSeek-V3, Wang et al. 2024). groups: the experts are chosen from the top_groups best of so many
    groups of neighbours, which are compared by the sum of their group_best best experts. normalize: a token's weights
    are divided by their sum + 1e-20. scale: they are then multiplied by it, and by their expert's of expert_scale, [E]
    float32. NaN counts as the lowest score.
    """
    tokens, experts = logits.shape if logits.dim() == 2 else (0, 0)  # which the kernel refuses
    out = Routing.empty(tokens, experts, top_k, logits.device) if out is None else out
    kernels.route_experts.default(
        logits, bias, expert_scale, scoring, groups, top_groups, group_best, normalize, scale, *out
    )
    return out
