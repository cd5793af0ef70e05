"""What one step of the engine hands to the model."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Observed(NamedTuple):
    """Sequences whose queries' attention is summed: the arguments of ops.attention_mass, mass with all layers."""

    first: Tensor  # [S] int32
    sources: Tensor  # [S] int32
    rows: Tensor  # [S] int32
    mass: Tensor  # [rows, layers, kv_heads, capacity] float32


@dataclass(frozen=True, slots=True)
class ForwardBatch:
    """One step's ragged batch: T tokens of S sequences, those of a sequence side by side."""

    token_ids: Tensor  # [T] int64
    positions: Tensor  # [T] int64, in the token's own sequence
    slots: Tensor  # [T] int64, block * block_size + offset; negative: keys and values are not kept
    block_tables: Tensor  # [S, max_blocks] int32
    query_start: Tensor  # [S + 1] int32: sequence s has rows query_start[s]:query_start[s + 1]
    seq_lens: Tensor  # [S] int32, cached tokens of each sequence with this step's included
    logits_rows: Tensor  # [L] int64, the rows of T whose logits are wanted
    state_source: Tensor | None = None  # [S] int32, see ops.causal_conv; where the model has recurrent states
    state_destination: Tensor | None = None  # [S] int32
    adapters: Tensor | None = None  # [T] int32, see ops.add_lora; None: no token has an adapter
    last_adapters: Tensor | None = None  # [L] int32, of the rows whose logits are wanted
    observed: Observed | None = None

    def tensors(self) -> dict[str, Tensor]:
        """By name, without what is observed."""
        named = {each.name: getattr(self, each.name) for each in fields(self) if each.name != "observed"}
        return {name: tensor for name, tensor in named.items() if tensor is not None}

    def to(self, device: torch.device) -> ForwardBatch:
        """The batch there, where it is not there already; nothing is observed there."""
        if self.token_ids.device == device:
            return self
        there: dict[str, Any] = {name: tensor.to(device) for name, tensor in self.tensors().items()}
        return ForwardBatch(**there)


class LayerCache(NamedTuple):
    """One layer's view of the KV pool, in the layouts of ops.rope_kv_write."""

    k: Tensor  # [blocks, kv_heads, head_dim, block_size], of int4 head_dim / 2 bytes
    v: Tensor  # [blocks, kv_heads, block_size, head_dim]
    k_scale: Tensor | None = None  # [blocks, kv_heads, (int4: groups,) block_size] float16, quantised caches only
    v_scale: Tensor | None = None
    key_divisor: Tensor | None = None  # [kv_heads, head_dim] float32; see key_shifts.py
    key_offset: Tensor | None = None

    @property
    def tensors(self) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        """K, V and their scales."""
        return self[:4]


class LatentCache(NamedTuple):
    """One layer's view of the KV pool, of latent attention, in the layout of ops.latent_write."""

    latents: Tensor  # [blocks, block_size, width]


class LayerState(NamedTuple):
    """One layer's view of the pool of recurrent states, in the layouts of ops.causal_conv and ops.gated_delta_rule."""

    conv: Tensor  # [slots, taps - 1, channels] of the activations' dtype
    recurrent: Tensor  # [slots, value_heads, key_dim, state_width(value_dim)] float32


AnyCache = LayerCache | LatentCache | LayerState
