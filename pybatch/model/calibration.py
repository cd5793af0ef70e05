"""Packs weights by the activations that they meet: the model runs once on fixed token ids, and each projection behind
a norm is packed when its input is known."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pybatch import ops
from pybatch.model.batch import AnyCache, ForwardBatch, LatentCache, LayerCache, LayerState
from pybatch.model.config import AttentionConfig, GatedDeltaConfig, LatentAttentionConfig
from pybatch.model.decoder import Decoder
from pybatch.model.layers import NormedLinear
from pybatch.model.smoothquant import PackedWhenCalled
from pybatch.model.tensors import changed

TOKENS = 128  # a multiple of BLOCK_SIZE
BLOCK_SIZE = 32


def pack_by_running(decoder: Decoder) -> None:
    """Runs a decoder with PackedWhenCalled projections, and puts the packed ones in their place."""
    count = min(TOKENS, decoder.context_length)
    positions = torch.arange(count)
    # Layers run one after another, so that those that are alike can have one cache.
    made = {kind: any_cache_of(decoder, kind, count) for kind in set(decoder.config.attentions)}
    attention = [made[kind] for kind in decoder.config.attentions]
    run_alone(decoder, positions, decoder.caches(attention, states_of(decoder)))
    decoder.layers = changed(decoder.layers, NormedLinear, _settled)
    decoder.make_buffers()


def states_of(decoder: Decoder) -> list[LayerState]:
    """Of one sequence, one for each layer that has states."""
    states = []
    for mixer in (layer.mixer for layer in decoder.config.layers if isinstance(layer.mixer, GatedDeltaConfig)):
        conv = torch.zeros(1, mixer.taps - 1, mixer.channels, dtype=decoder.dtype, device=decoder.device)
        state = mixer.value_heads, mixer.key_dim, ops.state_width(mixer.value_dim)
        states.append(LayerState(conv, torch.zeros(1, *state, device=decoder.device)))
    return states


def any_cache_of(
    decoder: Decoder, mixer: AttentionConfig | LatentAttentionConfig, tokens: int
) -> LayerCache | LatentCache:
    """Of one sequence."""
    if isinstance(mixer, AttentionConfig):
        return cache_of(decoder, mixer, tokens)
    shape = -(-tokens // BLOCK_SIZE), BLOCK_SIZE, mixer.head_dim
    return LatentCache(torch.zeros(shape, dtype=decoder.dtype, device=decoder.device))


def cache_of(decoder: Decoder, mixer: AttentionConfig, tokens: int) -> LayerCache:
    shape = -(-tokens // BLOCK_SIZE), mixer.num_kv_heads, mixer.head_dim, BLOCK_SIZE
    k = torch.zeros(shape, dtype=decoder.dtype, device=decoder.device)
    return LayerCache(k, k.transpose(2, 3).contiguous())


def run_alone(decoder: Decoder, positions: Tensor, caches: Sequence[AnyCache]) -> None:
    """Runs fixed token ids at these positions."""
    count = len(positions)
    batch = ForwardBatch(
        token_ids=torch.arange(count) * decoder.config.vocab_size // count,
        positions=positions,
        slots=torch.arange(count),
        block_tables=torch.arange(-(-count // BLOCK_SIZE), dtype=torch.int32)[None],
        query_start=torch.tensor([0, count], dtype=torch.int32),
        seq_lens=torch.tensor([count], dtype=torch.int32),
        logits_rows=torch.tensor([count - 1]),
        state_source=torch.tensor([-1], dtype=torch.int32),
        state_destination=torch.tensor([0], dtype=torch.int32),
    )
    decoder.forward(batch.to(decoder.device), caches)


def _settled(normed: NormedLinear) -> NormedLinear:
    linear, norm = normed.linear, normed.norm
    if not isinstance(linear, PackedWhenCalled):
        return normed
    assert norm is not None
    return NormedLinear(norm.divided(linear.scale), linear.linear)
