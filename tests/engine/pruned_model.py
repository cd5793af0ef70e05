"""A Llama model token after token in float64, over caches that keep what each head is told to keep: the papers'
algorithms as they are written, without blocks."""

from __future__ import annotations

import copy

import torch
from torch import Tensor
from transformers import LlamaForCausalLM


class Layer:
    """A layer's cache. Keys are kept as they are before RoPE, so that they can be given any positions."""

    def __init__(self, kv_heads: int, head_dim: int) -> None:
        self.k = self.v = torch.empty(kv_heads, 0, head_dim, dtype=torch.float64)
        self.positions = torch.empty(kv_heads, 0, dtype=torch.int64)
        self.mass = torch.empty(kv_heads, 0, dtype=torch.float64)  # the attention that a token has had
        self.last: list[Tensor] = []  # that of each query since the start, by KV head

    def keep(self, indices: Tensor) -> None:
        """indices: [kv_heads, kept]"""
        of_rows = indices[..., None].expand(-1, -1, self.k.shape[2])
        self.k, self.v = self.k.gather(1, of_rows), self.v.gather(1, of_rows)
        self.positions, self.mass = self.positions.gather(1, indices), self.mass.gather(1, indices)


class PrunedModel:
    """by_place: a token's position is its place in the cache, as StreamingLLM has it; else its place in the text."""

    def __init__(self, model: LlamaForCausalLM, *, by_place: bool) -> None:
        self._model, self._by_place = copy.deepcopy(model).double(), by_place
        config = model.config
        self._heads, self._kv_heads = config.num_attention_heads, config.num_key_value_heads
        self._head_dim = config.hidden_size // config.num_attention_heads
        theta = config.rope_parameters["rope_theta"]
        self._frequencies = theta ** -(torch.arange(0, self._head_dim, 2).double() / self._head_dim)
        self.layers = [Layer(self._kv_heads, self._head_dim) for _ in range(config.num_hidden_layers)]
        self._count = 0

    def _turned(self, x: Tensor, positions: Tensor) -> Tensor:
        angles = positions[..., None].double() * self._frequencies
        cos, sin = torch.cat([angles.cos()] * 2, -1), torch.cat([angles.sin()] * 2, -1)
        first, second = x.chunk(2, -1)
        return x * cos + torch.cat([-second, first], -1) * sin

    @torch.no_grad()
    def feed(self, token: int) -> Tensor:
        """Log-probabilities of what follows the token, [vocab]."""
        model = self._model.model
        hidden = model.embed_tokens.weight[token]
        for cache, block in zip(self.layers, model.layers, strict=True):
            attention = block.self_attn
            x = block.input_layernorm(hidden)
            q = attention.q_proj(x).view(self._heads, self._head_dim)
            new = torch.full((self._kv_heads, 1), self._count)
            cache.k = torch.cat([cache.k, attention.k_proj(x).view(self._kv_heads, 1, -1)], 1)
            cache.v = torch.cat([cache.v, attention.v_proj(x).view(self._kv_heads, 1, -1)], 1)
            cache.positions = torch.cat([cache.positions, new], 1)
            cache.mass = torch.cat([cache.mass, torch.zeros_like(new).double()], 1)
            positions = torch.arange(cache.k.shape[1]).expand(cache.k.shape[:2]) if self._by_place else cache.positions
            k = self._turned(cache.k, positions)
            q = self._turned(q.view(self._kv_heads, -1, self._head_dim), positions[:, -1:])
            probabilities = (q @ k.mT * self._head_dim**-0.5).softmax(-1)
            cache.last.append(probabilities.sum(1))
            cache.mass += cache.last[-1]
            hidden = hidden + attention.o_proj((probabilities @ cache.v).flatten())
            hidden = hidden + block.mlp(block.post_attention_layernorm(hidden))
        self._count += 1
        return self._model.lm_head(model.norm(hidden)).log_softmax(-1)
