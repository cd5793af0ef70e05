"""One decoder for every known family: RMSNorm, grouped-query attention with rotary positions, gated MLP."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pybatch import ops
from pybatch.model.batch import ForwardBatch, LayerCache
from pybatch.model.config import ModelConfig
from pybatch.model.layers import DenseLinear, Linear, Packed
from pybatch.ops import Epilogue

GROWTH = 16  # buffers grow in steps of this many rows


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    attention_norm: Tensor
    qkv: Linear
    q_norm: Tensor | None
    k_norm: Tensor | None
    attention_out: Linear
    mlp_norm: Tensor
    gate_up: Linear  # rows as ops.interleave_gate_up puts them
    down: Linear
    window: int

    def nbytes(self) -> int:
        norms = (self.attention_norm, self.mlp_norm, self.q_norm, self.k_norm)
        linears = (self.qkv, self.attention_out, self.gate_up, self.down)
        return sum(norm.nbytes for norm in norms if norm is not None) + sum(linear.nbytes() for linear in linears)


class Decoder:
    """A model in memory. `forward` keeps its buffers from step to step, so only one thread may run it at a time."""

    def __init__(
        self,
        config: ModelConfig,
        dtype: torch.dtype,
        *,
        embedding: Packed,
        layers: Sequence[Layer],
        final_norm: Tensor,
        lm_head: Packed,
        rotary: Tensor,
    ) -> None:
        self.config = config
        self.dtype = dtype  # of activations
        self.embedding, self.layers, self.final_norm, self.lm_head = embedding, layers, final_norm, lm_head
        self.rotary = rotary
        self.device = final_norm.device
        self._activation = {"silu": Epilogue.SILU_MUL, "gelu_tanh": Epilogue.GELU_TANH_MUL}[config.activation]
        q, kv = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
        self._qkv_split = (q, kv, kv)
        self.make_buffers()

    def make_buffers(self, rows: int = 0) -> None:
        """Allocates buffers for steps of up to this many tokens; a larger step makes them grow, and move. A copy of the
        decoder needs its own."""
        q, kv, _ = self._qkv_split
        hidden, mlp = self.config.hidden_size, self.config.intermediate_size
        self._token_buffers = Buffers(self.dtype, self.device, (hidden, q + 2 * kv, q, mlp), rows)
        self._last_rows = Buffers(self.dtype, self.device, (hidden,), rows)
        self._logits = Buffers(torch.float32, self.device, (self.config.vocab_size,), rows)

    @property
    def context_length(self) -> int:
        """The positions that it was loaded for."""
        return self.rotary.shape[0]

    @property
    def cache_dtype(self) -> torch.dtype:
        """The KV cache's dtype by default. Beside quantised weights it is float16, which loses less than they do:
        decode attention takes as long as its bytes take to read."""
        quantized = not isinstance(self.layers[0].qkv, DenseLinear)
        return torch.float16 if quantized and self.dtype == torch.float32 else self.dtype

    def forward(self, batch: ForwardBatch, caches: Sequence[LayerCache]) -> Tensor:
        """Runs one step, writes its keys and values into the caches (one per layer), and returns the logits of
        batch.logits_rows: [L, vocab_size] float32, valid until the next call."""
        config, eps, activation = self.config, self.config.norm_eps, self._activation
        scale = config.head_dim**-0.5
        residual, qkv, attended, gated = self._token_buffers.rows(batch.token_ids.shape[0])
        q, k, v = qkv.split_with_sizes(self._qkv_split, dim=1)

        self.embedding.embed(batch.token_ids, residual)
        for index, (layer, cache) in enumerate(zip(self.layers, caches, strict=True)):
            layer.qkv(residual, qkv, norm=layer.attention_norm, norm_eps=eps)
            ops.rope_kv_write(
                q, k, v, batch.positions, batch.slots, self.rotary, cache.k, cache.v, cache.k_scale, cache.v_scale,
                q_norm=layer.q_norm, k_norm=layer.k_norm, norm_eps=eps,
                key_divisor=cache.key_divisor, key_offset=cache.key_offset,
            )  # fmt: skip
            ops.paged_attention(
                q, cache.k, cache.v, batch.block_tables, batch.query_start, batch.seq_lens, scale,
                k_scale=cache.k_scale, v_scale=cache.v_scale, window=layer.window, out=attended,
            )  # fmt: skip
            if batch.observed is not None:
                first, sources, rows, mass = batch.observed
                ops.attention_mass(
                    q, *cache.tensors, batch.block_tables, batch.query_start, batch.seq_lens, scale,
                    first=first, sources=sources, rows=rows, mass=mass[:, index],
                )  # fmt: skip
            layer.attention_out(attended, residual, epilogue=Epilogue.ADD)
            layer.gate_up(residual, gated, norm=layer.mlp_norm, norm_eps=eps, epilogue=activation)
            layer.down(gated, residual, epilogue=Epilogue.ADD)

        rows = batch.logits_rows
        last = residual
        if len(rows) < len(residual):
            (last,) = self._last_rows.rows(rows.shape[0])
            ops.take_rows(residual, rows, out=last)
        return self.lm_head(last, self._logits.rows(rows.shape[0])[0], norm=self.final_norm, norm_eps=eps)

    def weight_bytes(self) -> int:
        """Bytes of all weights; embeddings tied to the vocabulary projection count once."""
        tied = self.lm_head is self.embedding
        ends = self.embedding.nbytes() + (0 if tied else self.lm_head.nbytes()) + self.final_norm.nbytes
        return ends + sum(layer.nbytes() for layer in self.layers)


class Buffers:
    """Matrices of equally many rows that grow to the most rows ever asked for."""

    def __init__(self, dtype: torch.dtype, device: torch.device, widths: Sequence[int], rows: int) -> None:
        self._dtype, self._device, self._widths = dtype, device, widths
        self._storage = self._views = self._allocate(rows)

    def _allocate(self, rows: int) -> tuple[Tensor, ...]:
        return tuple(torch.empty(rows, width, dtype=self._dtype, device=self._device) for width in self._widths)

    def rows(self, count: int) -> tuple[Tensor, ...]:
        if count != self._views[0].shape[0]:
            if count > self._storage[0].shape[0]:
                capacity = -(-count // GROWTH) * GROWTH
                self._views = self._storage = ()  # frees the smaller ones first
                self._storage = self._allocate(capacity)
            self._views = tuple(buffer[:count] for buffer in self._storage)
        return self._views
