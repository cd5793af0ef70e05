"""Attention to the paged KV cache."""

from __future__ import annotations

import torch
from torch import Tensor

from pybatch.ops.library import kernels


def paged_attention(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    block_tables: Tensor,
    query_start: Tensor,
    seq_lens: Tensor,
    scale: float,
    *,
    k_scale: Tensor | None = None,
    v_scale: Tensor | None = None,
    window: int = 0,
    soft_cap: float = 0.0,
    sinks: Tensor | None = None,
    counters: Tensor | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """Causal attention of a ragged batch over the paged KV cache: prefill, chunked prefill and decode alike.

    q, out: [T, heads * D] F; rows query_start[s]:query_start[s+1] are the last tokens of sequence s.
    block_tables: [S, max_blocks] int32; query_start: [S + 1] int32; seq_lens: [S] int32, cached tokens of each
    sequence with this call's included; caches and scales as in rope_kv_write. window: 0 (all), or the number of
    latest tokens that a query sees; soft_cap: 0 (none), or c in c * tanh(logit / c); sinks: [heads] float32, logits in
    the softmax that have no value.

    counters: at least 1 + S * heads int32 zeros, in which a GPU's blocks count who has finished. They are zeros again
    when the call has run, so that calls on one stream may share them, in graphs too; calls on two streams may not.
    None: the call makes its own.
    """
    out = torch.empty_like(q) if out is None else out
    kernels.paged_attention.default(
        q, k_cache, v_cache, k_scale, v_scale, block_tables, query_start, seq_lens, scale, window, soft_cap, sinks,
        counters, out,
    )  # fmt: skip
    return out


def latent_attention(
    q: Tensor,
    cache: Tensor,
    block_tables: Tensor,
    query_start: Tensor,
    seq_lens: Tensor,
    scale: float,
    *,
    out: Tensor,
) -> Tensor:
    """Multi-head latent attention in its absorbed form (DeepSeek-V2, 2024): causal attention of all heads to the same
    keys, which are the values too. CPU only.

    q: [T, heads * W] F; cache: as in latent_write; out: [T, heads * L], q's dtype: the first L elements of the sums.
    block_tables, query_start, seq_lens: as in paged_attention.
    """
    kernels.latent_attention.default(q, cache, block_tables, query_start, seq_lens, scale, out)
    return out


def attention_mass(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    k_scale: Tensor | None,
    v_scale: Tensor | None,
    block_tables: Tensor,
    query_start: Tensor,
    seq_lens: Tensor,
    scale: float,
    *,
    first: Tensor,
    sources: Tensor,
    rows: Tensor,
    mass: Tensor,
) -> None:
    """The attention that cached tokens have had so far in one layer: the sum over queries, and over the query heads of
    a KV head, of the probabilities of paged_attention (without window, cap or sinks).

    first, sources, rows: [S] int32. Of sequence s the queries first[s]:query_start[s+1] of q count; where there are
    any, mass[rows[s], h, :seq_lens[s]] becomes mass[sources[s], h] (zero where sources[s] is negative, and for the
    tokens of this call) plus their probabilities, added in ascending order of queries: so the sum has the same bits in
    whatever pieces they come. mass: [rows, kv_heads, capacity] float32, capacity a multiple of 16; a row that is
    written is neither written twice nor read. The rest as in paged_attention.
    """
    kernels.attention_mass.default(
        q, k_cache, v_cache, k_scale, v_scale, block_tables, query_start, seq_lens, scale, first, sources, rows, mass
    )
