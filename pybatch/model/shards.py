"""Tensor parallelism: ranks that share the heads of attention, the width of MLPs and of experts, and the vocabulary.

Megatron-LM (Shoeybi et al. 2019) splits the second projection of a block along its inputs and adds up what the ranks
have. Here every projection is split along its outputs, and ranks exchange outputs: each element is one rank's sum over
all inputs in the kernel's own order, so that any number of ranks gives the bits of one, in every precision.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from math import ceil
from typing import Any, cast

import torch
from torch import Tensor

from pybatch import ops
from pybatch.machine.ranks import Ranks
from pybatch.model.config import (
    AttentionConfig,
    GatedDeltaConfig,
    LayerConfig,
    MLPBesideMoEConfig,
    ModelConfig,
    MoEConfig,
)
from pybatch.model.errors import ModelError
from pybatch.model.layers import DenseLinear, GGUFLinear, NormOfAllHeads, Packed, ScaledLinear
from pybatch.model.role_tensors import Grouped
from pybatch.model.rows import Heads, Rows, Stacked, sliced
from pybatch.model.sharded import ShardedHead, ShardedLinear, ShardedNorm
from pybatch.model.weights import Columns, WeightLoader, WeightPlan

KEYS = ("k", "v", "k_norm")  # roles of what may be held by several ranks
OF_ALL = ("q_a", "kv_a", "token_gate", "token_out")  # likewise of what each has: latents, and inputs of tokens' own


def of_rank(config: ModelConfig, ranks: Ranks) -> ModelConfig:
    """The config of a rank's layers. Raises ModelError for a model that cannot be split so."""
    layers = {layer: _layer_of_rank(layer, config, ranks.size) for layer in set(config.layers)}
    if config.hidden_size % ranks.size:
        raise _indivisible("hidden_size", config.hidden_size, config, ranks.size)
    return replace(config, layers=tuple(layers[layer] for layer in config.layers))


def _layer_of_rank(layer: LayerConfig, config: ModelConfig, size: int) -> LayerConfig:
    def share(block: Any, **counts: str) -> Any:
        """The block with a share of these fields, named as the model's config has them."""
        for name, field in counts.items():
            if getattr(block, field) % size:
                raise _indivisible(name, getattr(block, field), config, size)
        return replace(block, **{field: getattr(block, field) // size for field in counts.values()})

    def share_inner(block: Any) -> Any:
        if isinstance(block, MLPBesideMoEConfig):
            return replace(block, mlp=share_inner(block.mlp), moe=share_inner(block.moe))
        if isinstance(block, MoEConfig):
            shared = {"shared_expert_intermediate_size": "shared_width"} if block.shared_width else {}
            return share(block, moe_intermediate_size="width", **shared)
        return share(block, intermediate_size="width")

    mixer = layer.mixer
    if isinstance(mixer, GatedDeltaConfig):
        mixer = share(mixer, linear_num_key_heads="key_heads", linear_num_value_heads="value_heads")
    else:
        mixer = share(mixer, num_heads="num_heads")
        if isinstance(mixer, AttentionConfig):
            mixer = _kv_heads_of_rank(mixer, config, size)
    return replace(layer, mixer=mixer, mlp=share_inner(layer.mlp))


def _kv_heads_of_rank(mixer: AttentionConfig, config: ModelConfig, size: int) -> AttentionConfig:
    count = mixer.num_kv_heads
    if size % count == 0:
        return replace(mixer, num_kv_heads=1, kv_ranks=size // count)
    if count % size == 0:
        return replace(mixer, num_kv_heads=count // size)
    raise ModelError(
        f"tensor_parallel_size: expected a divisor or a multiple of num_kv_heads, {count} in {config.name}, got {size}"
    )


def _indivisible(name: str, count: int, config: ModelConfig, size: int) -> ModelError:
    return ModelError(f"tensor_parallel_size: expected a divisor of {name}, {count} in {config.name}, got {size}")


class Shards(WeightLoader):
    """What is this rank's; the checkpoint's config is that of its layers."""

    ranks: Ranks

    def linear(
        self,
        rows: Mapping[str, int],
        columns: int | Heads,
        layer: int | None = None,
        *,
        bias: bool = False,
        fused: str = "",
    ) -> Any:
        """What each rank has all of, or in a layer the projections of what they have in parts."""
        if self.has_all(rows, layer):
            return super().linear(rows, columns, layer, bias=bias, fused=fused)
        weights, biases = self._outputs(rows, self.whole(columns), layer, bias=bias, fused=fused)
        own = Stacked(list(map(self.own, weights)))
        packed = self.packer.pack(own, self._bias_of(list(map(self.own, biases))))
        return ShardedLinear(packed, own.shape[0], self.ranks)

    def has_all(self, roles: Iterable[str], layer: int | None) -> bool:
        return layer is None or not set(roles).isdisjoint(OF_ALL)

    def one_expert(self, linear: Any, width: int) -> Any:
        return replace(linear, linear=super().one_expert(linear.linear, width // self.ranks.size))

    def experts(
        self, count: int, roles: Mapping[str, int], columns: int, layer: int, *, whole: str, bias: bool = False
    ) -> Any:
        """As linear: their input is what the ranks have in parts."""
        size = self.ranks.size
        biases = self._expert_biases(count, roles, layer, whole) if bias else []
        rows = self._expert_rows(count, roles, columns * size, layer, whole)
        own = self._pack_experts(self._own_rows(rows), self._own_columns(biases))
        return ShardedLinear(own, sum(roles.values()) // size, self.ranks)

    def vectors(self, role: str, heads: Heads, layer: int) -> Tensor:
        held_by = self._held_by(role, layer)
        whole = super().vectors(role, self.whole(heads, held_by), layer)
        return whole.tensor_split(self.ranks.size // held_by)[self.ranks.rank // held_by].contiguous()

    def norm_of_all_heads(self, norm: NormOfAllHeads, kv_ranks: int) -> ShardedNorm:
        return ShardedNorm(norm, self.ranks, kv_ranks)

    def exact_of_heads(
        self, role: str, counts: Sequence[int], layer: int, suffix: str = "", *, rest: tuple[int, ...] = ()
    ) -> Tensor:
        size, rank = self.ranks.size, self.ranks.rank
        whole = super().exact_of_heads(role, [count * size for count in counts], layer, suffix, rest=rest)
        parts = whole.split_with_sizes([count * size for count in counts])
        return torch.cat([part.tensor_split(size)[rank] for part in parts])

    def head(self, embedding: Packed | None) -> Any:
        config = self.config
        first, last = self.own_tokens
        linear: Packed | None = None
        if first < last and config.tie_word_embeddings:
            assert embedding is not None
            linear = _columns(embedding, first, last)
        elif first < last:
            rows = {"lm_head": config.vocab_size}
            weights, biases = self._outputs(rows, config.hidden_size, None, bias=config.head_bias)
            own = [sliced(part, first, last) for part in weights]
            linear = self.packer.pack(Stacked(own), self._bias_of([sliced(part, first, last) for part in biases]))
        return ShardedHead(linear, last - first, self._tokens_each, self.ranks)

    @property
    def own_tokens(self) -> tuple[int, int]:
        """The first of the vocabulary whose logits this rank has, and the one behind its last; of a small one none."""
        first = min(self.ranks.rank * self._tokens_each, self.config.vocab_size)
        return first, min(first + self._tokens_each, self.config.vocab_size)

    @property
    def _tokens_each(self) -> int:
        """Of whole panels."""
        return ceil(ceil(self.config.vocab_size / ops.PANEL) / self.ranks.size) * ops.PANEL

    def _own_parts(
        self,
        rows: Mapping[str, int],
        layer: int,
        suffix: str,
        columns: tuple[int, ...],
        fused: str,
        grouped: Mapping[str, Grouped] | None,
    ) -> list[Rows]:
        held_by = {role: self._held_by(role, layer) for role in rows}
        whole = {role: self.whole(count, held_by[role]) for role, count in rows.items()}
        groups = {
            name: Grouped(
                each.roles, each.groups and self.whole(each.groups, max(held_by[role] for role in each.roles))
            )
            for name, each in (grouped or {}).items()
            if all(role in rows for role in each.roles)
        }
        parts = self._parts(whole, layer, suffix, columns, fused, groups)
        return [self.own(part, held_by[role]) for role, part in zip(rows, parts, strict=True)]

    def _held_by(self, role: str, layer: int) -> int:
        """How many ranks have the same rows of a role."""
        if role in OF_ALL:
            return self.ranks.size
        mixer = self.config.layers[layer - self.config.first_layer].mixer
        return mixer.kv_ranks if role in KEYS and isinstance(mixer, AttentionConfig) else 1

    def _own_experts(
        self, count: int, roles: Mapping[str, int], columns: int, layer: int, whole: str, *, bias: bool
    ) -> tuple[list[list[Rows]], list[Tensor]]:
        of_all = {role: n * self.ranks.size for role, n in roles.items()}
        rows, biases = super()._own_experts(count, of_all, columns, layer, whole, bias=bias)
        return self._own_rows(rows), self._own_columns(biases)

    def _own_rows(self, experts: list[list[Rows]]) -> list[list[Rows]]:
        return [[self.own(part) for part in parts] for parts in experts]

    def _own_columns(self, biases: list[Tensor]) -> list[Tensor]:
        return [part.tensor_split(self.ranks.size, dim=1)[self.ranks.rank] for part in biases]

    def own(self, rows: Rows, held_by: int = 1) -> Rows:
        count = rows.shape[0] * held_by // self.ranks.size
        place = self.ranks.rank // held_by
        return sliced(rows, place * count, (place + 1) * count)

    def whole(self, columns: Columns, held_by: int = 1) -> Columns:
        parts = self.ranks.size // held_by
        whole = replace(columns, count=columns.count * parts) if isinstance(columns, Heads) else columns * parts
        return cast("Columns", whole)


class ShardLoader(Shards):
    """A WeightLoader of this rank's share."""

    def __init__(self, ranks: Ranks, *arguments: Any) -> None:
        self.ranks = ranks
        super().__init__(*arguments)


class ShardPlan(Shards, WeightPlan):
    """Likewise a WeightPlan."""

    def __init__(self, ranks: Ranks, *arguments: Any) -> None:
        self.ranks = ranks
        super().__init__(*arguments)


def _columns(linear: Packed, first: int, last: int) -> Packed:
    """Outputs first to last of a projection, which begin with a panel."""
    panels = linear.weight[first // ops.PANEL : -(-last // ops.PANEL)]
    if isinstance(linear, ScaledLinear):
        return replace(linear, weight=panels, scale=linear.scale[first:last])
    assert isinstance(linear, DenseLinear | GGUFLinear)
    return replace(linear, weight=panels, width=last - first)
