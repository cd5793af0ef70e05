"""How a quantised KV cache keeps keys: less their mean, and with outlying channels made smaller.

One scale a token and head (or group) has to reach the largest element, so a few channels of keys that are far larger
than the rest, as the biases of Qwen2's key projections make them, leave the others few codes. Much of it is the same in
all keys, and what is the same in all keys changes no softmax: a query's scores are all less by one number. So the
mean of each channel is taken out of the keys before they are quantised (KIVI, Liu et al. 2024, has a zero point a
channel for the same reason; SageAttention, Zhang et al. 2025, takes out the mean of the keys at hand). Slow rotary
pairs have nearly all of their bias in the mean. Beside sinks, and under soft caps, it is left in: there a number that
all scores are less by changes the softmax. A channel that is still large is divided by a power of two, by which
queries are multiplied (as in SmoothQuant, Xiao et al. 2023), alike in the two halves of a rotary pair.

Both come from the model's own keys for fixed token ids, at positions all over the context, and so are the same in each
run. They are rounded, so that small differences between processors do not show in them.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from pybatch.model.calibration import cache_of, run_alone, states_of
from pybatch.model.config import AttentionConfig
from pybatch.model.decoder import Decoder

TOKENS = 64
OUTLIER = 4.0  # a channel that is larger than the median by more than this is divided
STEPS = 16  # to which offsets are rounded, per median


class KeyShift(NamedTuple):
    """Of one layer, for ops.rope_kv_write: [kv_heads, head_dim] float32 each."""

    divisor: Tensor
    offset: Tensor


def key_shifts(decoder: Decoder) -> list[KeyShift]:
    """One a layer that has keys, by running the decoder on TOKENS tokens."""
    context = decoder.context_length
    count = min(TOKENS, context)
    mixers = [mixer for mixer in decoder.config.attentions if isinstance(mixer, AttentionConfig)]
    caches = [cache_of(decoder, mixer, count) for mixer in mixers]
    run_alone(decoder, torch.arange(count) * context // count, decoder.caches(caches, states_of(decoder)))
    return [
        _shift(
            cache.k.permute(1, 2, 0, 3).flatten(2)[:, :, :count].float().cpu(),
            attention.rope.rotary_dim,
            attention.own_head_dim,
            decoder.device,
            centred=not attention.sinks and not attention.soft_cap,
        )
        for cache, attention in zip(caches, mixers, strict=True)
    ]


def _shift(k: Tensor, rotary_dim: int, stored_dim: int, device: torch.device, *, centred: bool) -> KeyShift:
    """k: [kv_heads, head_dim, tokens] rotated keys, of which the first rotary_dim elements are in pairs, and those from
    stored_dim on are zeros. centred: less their mean."""
    k = k.nan_to_num()
    mean = k.mean(2) if centred else k.new_zeros(k.shape[:2])
    largest = (k - mean[:, :, None]).abs().amax(2)
    of_pairs = largest[:, :rotary_dim].reshape(len(k), 2, -1).amax(1)
    largest = torch.cat([of_pairs, of_pairs, largest[:, rotary_dim:]], 1)
    typical = largest[:, :stored_dim].median(1, keepdim=True).values.clamp(min=torch.finfo(torch.float32).tiny)
    divisor = (largest / typical / OUTLIER).clamp(min=1).log2().round().exp2()
    step = typical.log2().round().exp2() / STEPS
    offset = (mean / step).round() * step / divisor
    return KeyShift(divisor.contiguous().to(device), offset.nan_to_num().contiguous().to(device))
