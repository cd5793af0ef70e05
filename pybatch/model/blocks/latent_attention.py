"""Multi-head latent attention over the paged cache of latents, in its absorbed form: a head's queries are multiplied by
its key projection, and what it attends to by its value projection, so that keys and values are never made."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from pybatch import ops
from pybatch.model.batch import LatentCache
from pybatch.model.blocks.step import Step
from pybatch.model.buffers import Widths
from pybatch.model.config import LatentAttentionConfig
from pybatch.model.layers import NormedLinear, OfHeads, ResidualLinear


@dataclass(frozen=True, slots=True, kw_only=True)
class LatentAttention:
    config: LatentAttentionConfig
    projection: NormedLinear  # queries or their latents; latents, and the part of keys that turns
    queries: NormedLinear | None  # of their latents
    norm: Tensor  # [latent]
    keys: OfHeads  # [latent, key_dim] each: a head's key projection, transposed
    values: OfHeads  # [value_dim, latent] each
    out: ResidualLinear

    @property
    def widths(self) -> Widths:
        config = self.config
        return {
            "projected": sum(self._split),
            "queries": config.q_width,
            "absorbed": config.num_heads * config.head_dim,
            "latents": config.num_heads * config.latent,
            "attended": config.num_heads * config.value_dim,
        }

    @property
    def _split(self) -> tuple[int, int]:
        config = self.config
        return config.query_latent or config.q_width, config.latent + config.rope.rotary_dim

    def __call__(self, residual: Tensor, step: Step, cache: LatentCache) -> Tensor:
        """[T, heads * value_dim]"""
        config, batch, buffers, widths = self.config, step.batch, step.buffers, self.widths

        def by_head(x: Tensor) -> Tensor:
            return x.view(len(x), config.num_heads, -1)

        projected = self.projection(residual, buffers.of("projected", widths["projected"]), buffers)
        q, kv = projected.split_with_sizes(self._split, dim=1)
        if self.queries is not None:
            q = self.queries(q, buffers.of("queries", config.q_width), buffers)
        absorbed = buffers.of("absorbed", widths["absorbed"])
        self.keys(by_head(q)[..., : config.key_dim], by_head(absorbed)[..., : config.latent])
        ops.latent_write(
            q, kv, self.norm, config.norm_eps, batch.positions, batch.slots, step.rotary[config.rope], cache.latents,
            absorbed, interleaved=config.interleaved,
        )  # fmt: skip
        latents = ops.latent_attention(
            absorbed, cache.latents, batch.block_tables, batch.query_start, batch.seq_lens, config.softmax_scale,
            out=buffers.of("latents", widths["latents"]),
        )  # fmt: skip
        attended = buffers.of("attended", widths["attended"])
        self.values(by_head(latents), by_head(attended))
        return attended

    def add(self, attended: Tensor, residual: Tensor, step: Step) -> None:
        self.out(attended, residual, step.buffers)
