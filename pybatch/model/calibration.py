"""Packs weights by the activations that they meet: the model runs once on fixed token ids, and each projection behind
a norm is packed when its input is known."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Unpack

import torch
from torch import Tensor

from pybatch import ops
from pybatch.model.batch import ForwardBatch, LayerCache
from pybatch.model.decoder import Decoder, Layer
from pybatch.model.layers import Fused, Packed
from pybatch.model.smoothquant import channel_scale

TOKENS = 128  # a multiple of BLOCK_SIZE
BLOCK_SIZE = 32


class PackedWhenCalled:
    """A projection behind a norm whose weights are packed at the first call, by its input."""

    def __init__(self, pack: Callable[[Tensor], Packed]) -> None:
        self._pack: Callable[[Tensor], Packed] | None = pack

    def __call__(self, x: Tensor, out: Tensor, **fused: Unpack[Fused]) -> Tensor:
        norm = fused.pop("norm")
        assert norm is not None
        assert self._pack is not None
        normed = ops.rms_norm(x, norm, fused.pop("norm_eps"))
        self.scale = channel_scale(normed)
        self.linear = self._pack(self.scale.cpu())
        self._pack = None  # which holds the checkpoint's tensors
        return self.linear((normed / self.scale).to(x.dtype), out, **fused)

    def nbytes(self) -> int:
        return self.linear.nbytes()


def pack_by_running(decoder: Decoder) -> None:
    """Runs a decoder whose layers begin with PackedWhenCalled projections, and puts the packed ones in their place."""
    config, dtype, device = decoder.config, decoder.dtype, decoder.device
    count = min(TOKENS, decoder.rotary.shape[0])
    blocks = -(-count // BLOCK_SIZE)
    k = torch.zeros(blocks, config.num_kv_heads, config.head_dim, BLOCK_SIZE, dtype=dtype, device=device)
    cache = LayerCache(k, k.transpose(2, 3).contiguous())  # one for all layers, which run one after another
    batch = ForwardBatch(
        token_ids=torch.arange(count) * config.vocab_size // count,
        positions=torch.arange(count),
        slots=torch.arange(count),
        block_tables=torch.arange(blocks, dtype=torch.int32)[None],
        query_start=torch.tensor([0, count], dtype=torch.int32),
        seq_lens=torch.tensor([count], dtype=torch.int32),
        logits_rows=torch.tensor([count - 1]),
    )
    decoder.forward(batch.to(device), [cache] * config.num_layers)
    decoder.layers = [_settled(layer) for layer in decoder.layers]
    decoder.make_buffers()


def _settled(layer: Layer) -> Layer:
    qkv, gate_up = layer.qkv, layer.gate_up
    assert isinstance(qkv, PackedWhenCalled)
    assert isinstance(gate_up, PackedWhenCalled)
    return replace(
        layer,
        attention_norm=(layer.attention_norm / qkv.scale).to(layer.attention_norm.dtype),
        qkv=qkv.linear,
        mlp_norm=(layer.mlp_norm / gate_up.scale).to(layer.mlp_norm.dtype),
        gate_up=gate_up.linear,
    )
