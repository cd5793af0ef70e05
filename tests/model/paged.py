"""Runs a decoder on one sequence over a KV cache made by hand."""

from __future__ import annotations

import torch
from torch import Tensor

from pybatch.model import Decoder, ForwardBatch, LayerCache
from pybatch.model.batch import AnyCache, LatentCache, LayerState
from pybatch.model.config import AttentionConfig, GatedDeltaConfig, LatentAttentionConfig
from pybatch.ops import INT4_GROUP, state_width

BLOCK = 16
INT4 = torch.uint8  # the type of an int4 cache's bytes


def caches_for(decoder: Decoder, blocks: int, dtype: torch.dtype | None = None) -> list[AnyCache]:
    """Caches full of NaN, so that a read of what was never written shows."""
    dtype = dtype or decoder.dtype

    def empty(*shape: int, of: torch.dtype = dtype) -> Tensor:
        return torch.full(shape, 77 if of in (torch.int8, INT4) else float("nan"), dtype=of, device=decoder.device)

    caches: list[AnyCache] = []
    for layer in decoder.config.layers:
        if isinstance(layer.mixer, AttentionConfig) and layer.mixer.kv_of is not None:
            caches.append(caches[layer.mixer.kv_of])
            continue
        if isinstance(layer.mixer, GatedDeltaConfig):  # two slots, which are used by turns
            conv = empty(2, layer.mixer.taps - 1, layer.mixer.channels, of=decoder.dtype)
            state = layer.mixer.value_heads, layer.mixer.key_dim, state_width(layer.mixer.value_dim)
            caches.append(LayerState(conv, empty(2, *state, of=torch.float32)))
            continue
        if isinstance(layer.mixer, LatentAttentionConfig):
            caches.append(LatentCache(empty(blocks, BLOCK, layer.mixer.head_dim)))
            continue
        heads, dim = layer.mixer.num_kv_heads, layer.mixer.head_dim
        width, groups = (dim // 2, [-(-dim // INT4_GROUP)]) if dtype == INT4 else (dim, [])
        k, v = empty(blocks, heads, width, BLOCK), empty(blocks, heads, BLOCK, width)
        scales = [empty(blocks, heads, *groups, BLOCK, of=torch.float16) for _ in "kv"] if dtype.itemsize == 1 else []
        caches.append(LayerCache(k, v, *scales))
    return caches


def logits_of(
    decoder: Decoder,
    ids: list[int],
    steps: list[int] | None = None,
    kv: torch.dtype | None = None,
    caches: list[AnyCache] | None = None,
) -> Tensor:
    """[len(ids), vocab] logits; steps: tokens of each forward pass (one pass over all if None)."""
    blocks = -(-len(ids) // BLOCK)
    caches = caches or caches_for(decoder, blocks + 1, kv)
    table = torch.randperm(blocks + 1, generator=torch.Generator().manual_seed(0))[:blocks].int()
    found, done = [], 0
    for step, count in enumerate(steps or [len(ids)]):
        positions = torch.arange(done, done + count)
        batch = ForwardBatch(
            token_ids=torch.tensor(ids[done : done + count]),
            positions=positions,
            slots=table[positions // BLOCK].long() * BLOCK + positions % BLOCK,
            block_tables=table[None],
            query_start=torch.tensor([0, count], dtype=torch.int32),
            seq_lens=torch.tensor([done + count], dtype=torch.int32),
            logits_rows=torch.arange(count),
            state_source=torch.tensor([step % 2 if step else -1], dtype=torch.int32),
            state_destination=torch.tensor([(step + 1) % 2], dtype=torch.int32),
        )
        found.append(decoder.forward(batch.to(decoder.device), caches).cpu().clone())
        done += count
    return torch.cat(found)
