"""Layers with a state in place of a KV cache."""

from __future__ import annotations

import torch
from torch import Tensor

from pybatch.ops.library import kernels

STATE_LANES = 16  # a recurrent state's rows are as long as a multiple of this


def state_width(value_dim: int) -> int:
    """The length of a recurrent state's rows, for gated_delta_rule."""
    return -(-value_dim // STATE_LANES) * STATE_LANES


def causal_conv(
    x: Tensor,
    weight: Tensor,
    state: Tensor,
    query_start: Tensor,
    source: Tensor,
    destination: Tensor,
    out: Tensor | None = None,
) -> Tensor:
    """silu of a convolution over time, channel by channel: the sum of weight[j] * x[t - taps + 1 + j].

    x, out: [T, channels] F, of a ragged batch: rows query_start[s]:query_start[s+1], at least one, are the next tokens
    of sequence s. weight: [taps, channels] of x's dtype, 2 to 8 taps. state: [slots, taps - 1, channels] of x's dtype,
    contiguous slots that may be apart: the last inputs of a sequence. query_start: [S + 1] int32. source, destination:
    [S] int32: the slot with a sequence's state before these tokens (negative: it begins, with zeros), and that for the
    one after them, which is no other sequence's and nobody's source. A negative destination marks padding, whose rows
    of out are zeros.

    Tokens are taken one after another, so that any pieces of a sequence give the same bits.
    """
    out = torch.empty_like(x) if out is None else out
    kernels.causal_conv.default(x, weight, state, query_start, source, destination, out)
    return out


def gated_delta_rule(
    qkv: Tensor,
    a: Tensor,
    b: Tensor,
    rate: Tensor,
    dt_bias: Tensor,
    state: Tensor,
    query_start: Tensor,
    source: Tensor,
    destination: Tensor,
    out: Tensor,
) -> Tensor:
    """Linear attention by the gated delta rule (Yang, Kautz and Hatamizadeh 2024). Of each value head, token by token:

        S *= exp(-rate * softplus(a + dt_bias));  S += outer(k, v - S^T k) * sigmoid(b);  out = S^T q

    with q and k divided by sqrt(sum of squares + 1e-6), and q by sqrt(K) too. Fp32 sums in one fixed order.

    qkv: [T, 2 * key_heads * K + value_heads * V] F, queries, keys, values; value_heads is a multiple of key_heads, and
    value head h has key head h * key_heads // value_heads. a, b: [T, value_heads] of qkv's dtype. rate, dt_bias:
    [value_heads] float32. state: [slots, value_heads, K, state_width(V)] float32, K up to 256, contiguous slots that
    may be apart. out: [T, value_heads * V] of qkv's dtype. The rest as in causal_conv.
    """
    kernels.gated_delta_rule.default(qkv, a, b, rate, dt_bias, state, query_start, source, destination, out)
    return out
