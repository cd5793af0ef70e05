"""Grouped-query attention over the paged KV cache."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from pybatch import ops
from pybatch.model.batch import LayerCache
from pybatch.model.blocks.step import Step
from pybatch.model.buffers import Widths
from pybatch.model.config import AttentionConfig, NormConfig
from pybatch.model.layers import NormedLinear, ResidualLinear


@dataclass(frozen=True, slots=True, kw_only=True)
class Attention:
    config: AttentionConfig
    index: int  # of the layer
    qkv: NormedLinear  # of these what there is, and the gate, if there is one
    norm_of_all: Callable[[Tensor, Tensor], None] | None = None  # of queries and keys, in place
    q_norm: Tensor | None
    k_norm: Tensor | None
    q_norm_bias: Tensor | None = None
    k_norm_bias: Tensor | None = None
    v_norm: Tensor | None
    norm: NormConfig
    sinks: Tensor | None
    out: ResidualLinear

    @property
    def widths(self) -> Widths:
        return {"qkv": sum(self._split), "attended": self.config.q_width}

    @property
    def _split(self) -> tuple[int, int, int, int]:
        config, q = self.config, self.config.q_width
        kv = 0 if config.kv_of is not None else config.kv_width
        return q, kv, 0 if config.v_is_k else kv, q if config.gated else 0

    def __call__(self, residual: Tensor, step: Step, cache: LayerCache) -> Tensor:
        """[T, heads * head_dim]"""
        config, batch, split = self.config, step.batch, self._split
        qkv = self.qkv(residual, step.buffers.of("qkv", sum(split)), step.buffers)
        q, k, v, gate = qkv.split_with_sizes(split, dim=1)
        q_norm, k_norm = self.q_norm, self.k_norm
        if self.norm_of_all is not None:
            self.norm_of_all(q, k)
        if config.qk_norm_bias:  # which ops.rope_kv_write does not add
            for of, norm, bias in ((q, q_norm, self.q_norm_bias), (k, k_norm, self.k_norm_bias)):
                assert norm is not None
                for head in torch.split(of, config.head_dim, dim=1):
                    ops.layer_norm(head, norm, bias, self.norm.eps, out=head)
            q_norm = k_norm = None
        written = (k, k if config.v_is_k else v, batch.slots) if config.kv_of is None else (None, None, None)
        ops.rope_kv_write(
            q, written[0], written[1], batch.positions, written[2], step.rotary[config.rope], *cache.tensors,
            q_norm=q_norm, k_norm=k_norm, v_norm=self.v_norm, norm_eps=self.norm.eps,
            layer_norm=self.norm.kind == "layer", norm_last=config.qk_norm_last,
            query_scale=step.query_scales.get(config.rope), key_divisor=cache.key_divisor, key_offset=cache.key_offset,
        )  # fmt: skip
        attended = ops.paged_attention(
            q, cache.k, cache.v, batch.block_tables, batch.query_start, batch.seq_lens, config.softmax_scale,
            k_scale=cache.k_scale, v_scale=cache.v_scale, window=config.window, soft_cap=config.soft_cap,
            sinks=self.sinks, counters=step.buffers.counters, out=step.buffers.of("attended", config.q_width),
        )  # fmt: skip
        if batch.observed is not None:
            first, sources, rows, mass = batch.observed
            ops.attention_mass(
                q, *cache.tensors, batch.block_tables, batch.query_start, batch.seq_lens, config.softmax_scale,
                first=first, sources=sources, rows=rows, mass=mass[:, self.index],
            )  # fmt: skip
        return ops.sigmoid_mul(attended, gate, out=attended) if config.gated else attended

    def add(self, attended: Tensor, residual: Tensor, step: Step) -> None:
        self.out(attended, residual, step.buffers)
