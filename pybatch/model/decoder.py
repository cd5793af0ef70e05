"""One decoder for every family: what differs is in the blocks that its layers are made of."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pybatch import ops
from pybatch.model.batch import AnyCache, ForwardBatch, LatentCache, LayerCache, LayerState
from pybatch.model.blocks.attention import Attention
from pybatch.model.blocks.gated_delta_net import GatedDeltaNet
from pybatch.model.blocks.latent_attention import LatentAttention
from pybatch.model.blocks.mlp import MLP
from pybatch.model.blocks.mlp_beside_moe import MLPBesideMoE
from pybatch.model.blocks.moe import MoE
from pybatch.model.blocks.step import Step
from pybatch.model.blocks.token_inputs import TokenInput, TokenInputs
from pybatch.model.buffers import Buffers, widest
from pybatch.model.config import ModelConfig
from pybatch.model.layers import DenseLinear, NormedLinear, Packed
from pybatch.model.lora_linear import StepAdapters, without_adapters
from pybatch.model.offload import HostLayers
from pybatch.model.rope import RopeConfig, query_scale
from pybatch.model.tensors import tensors_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """Each block reads the residual stream through a norm of its own, and adds to it. parallel: the second reads it as
    the first found it."""

    mixer: Attention | LatentAttention | GatedDeltaNet
    mlp: MLP | MoE | MLPBesideMoE
    parallel: bool = False
    token: TokenInput | None = None

    def __call__(self, residual: Tensor, step: Step, cache: AnyCache) -> None:
        inner: Any
        mixed = self.mixer(residual, step, cache)  # type: ignore[arg-type]  # each kind has its own
        if self.parallel:
            inner = self.mlp(residual, step)
            self.mixer.add(mixed, residual, step)
        else:
            self.mixer.add(mixed, residual, step)
            inner = self.mlp(residual, step)
        self.mlp.add(inner, residual, step)
        if self.token is not None:
            self.token(residual, step)


Parts = tuple[Packed | None, list[Layer], NormedLinear | None, DenseLinear | None, TokenInputs | None, Packed | None]


class Decoder:
    """A model in memory. `forward` keeps its buffers from step to step, so only one thread may run it at a time.

    head: the projection to the vocabulary behind the last norm; its weights may be those of embedding. rotary: a table
    of equally many positions for each rotation that the layers have. score: in place of head in models that classify.
    token_inputs: of layers that have some. positions: an embedding of them that is added to that of tokens. host: the
    layers whose weights are there. A stage (stage.py) has no embedding unless it is the first, and no head unless it is
    the last.
    """

    def __init__(
        self,
        config: ModelConfig,
        dtype: torch.dtype,
        *,
        embedding: Packed | None,
        layers: Sequence[Layer],
        head: NormedLinear | None,
        rotary: Mapping[RopeConfig, Tensor],
        score: DenseLinear | None = None,
        token_inputs: TokenInputs | None = None,
        positions: Packed | None = None,
        host: HostLayers | None = None,
    ) -> None:
        self.config = config
        self.dtype = dtype  # of activations
        self.embedding, self.layers, self.head, self.score = embedding, layers, head, score
        self.token_inputs, self.positions, self._host = token_inputs, positions, host
        self.adapters, self.last_adapters = StepAdapters(), StepAdapters()  # of all rows, and of those with logits
        self.rotary = rotary
        self.device = next(iter(rotary.values())).device
        scales = {rope: query_scale(rope, len(table)) for rope, table in rotary.items()}
        self.query_scales = {rope: scale.to(self.device) for rope, scale in scales.items() if scale is not None}
        self._embedding_scale = float(torch.tensor(config.scales.embedding, dtype=dtype))  # as transformers rounds it
        self.make_buffers()

    def make_buffers(self, rows: int = 0) -> None:
        """Allocates buffers for steps of up to this many tokens; a larger step makes them grow, and move. A copy of the
        decoder needs its own."""
        hidden = self.config.hidden_size
        parts = (part for layer in self.layers for part in (layer.mixer, layer.mlp, layer.token))
        blocks = [part.widths for part in (*parts, self.token_inputs) if part is not None]
        widths = widest({"residual": hidden, "normed": hidden}, *blocks)
        heads = [layer.mixer.config.num_heads for layer in self.layers if isinstance(layer.mixer, Attention)]
        self._buffers = Buffers(widths, self.dtype, self.device, rows, counters=max(heads, default=0))
        self._last_rows = Buffers({"residual": hidden, "normed": hidden}, self.dtype, self.device, rows)
        self._logits = Buffers({"logits": self.config.vocab_size}, torch.float32, self.device, rows)

    @property
    def context_length(self) -> int:
        """The positions that it was loaded for."""
        return next(iter(self.rotary.values())).shape[0]

    @property
    def cache_dtype(self) -> torch.dtype:
        """The KV cache's dtype by default. Beside quantised weights it is float16, which loses less than they do:
        decode attention takes as long as its bytes take to read."""
        mixer = next(layer.mixer for layer in self.layers if not isinstance(layer.mixer, GatedDeltaNet))
        projection = mixer.qkv if isinstance(mixer, Attention) else mixer.projection
        quantized = not isinstance(without_adapters(projection.linear), DenseLinear)
        return torch.float16 if quantized and self.dtype == torch.float32 else self.dtype

    def caches(
        self, attention: Sequence[LayerCache | LatentCache], states: Sequence[LayerState] = ()
    ) -> list[AnyCache]:
        """One a layer, of those of all layers that have keys and values and those of all that have states."""
        of_attention, of_states = iter(attention), iter(states)
        caches: list[AnyCache] = []
        for layer in self.layers:
            shared = layer.mixer.config.kv_of if isinstance(layer.mixer, Attention) else None
            if shared is not None:
                caches.append(caches[shared])
            else:
                caches.append(next(of_states) if isinstance(layer.mixer, GatedDeltaNet) else next(of_attention))
        return caches

    def forward(self, batch: ForwardBatch, caches: Sequence[AnyCache]) -> Tensor:
        """Runs one step, writes its keys, values and states into the caches (one per layer), and returns the logits of
        batch.logits_rows: [L, vocab_size] float32, valid until the next call."""
        self._buffers.resize(batch.token_ids.shape[0])
        self.adapters.slots, self.last_adapters.slots = batch.adapters, batch.last_adapters
        self._residual = self._buffers.of("residual", self.config.hidden_size)
        self._embed(batch, self._residual)
        self._run_layers(batch, self._residual, caches)
        return self._project(self._residual, batch.logits_rows)

    def _embed(self, batch: ForwardBatch, residual: Tensor) -> None:
        assert self.embedding is not None
        self.embedding.embed(batch.token_ids, residual, self._embedding_scale)
        if self.positions is not None:
            added = self.positions.embed(batch.positions, self._buffers.of("normed", residual.shape[1]))
            ops.add_normed(added, residual)
        if self.token_inputs is not None:
            self.token_inputs(batch.token_ids, residual, self._buffers)

    def _run_layers(self, batch: ForwardBatch, residual: Tensor, caches: Sequence[AnyCache]) -> None:
        step = Step(batch, self._buffers, self.rotary, self.query_scales)
        for layer, cache in zip(self.layers_in_turn(), caches, strict=True):
            layer(residual, step, cache)

    def layers_in_turn(self) -> Iterable[Layer]:
        """Each with its weights on the device for what is queued until the next is asked for."""
        return self.layers if self._host is None else self._host.in_turn(self.layers)

    def _project(self, residual: Tensor, rows: Tensor) -> Tensor:
        """The logits of these rows."""
        assert self.head is not None
        hidden = residual.shape[1]
        self._last_rows.resize(rows.shape[0])
        self._logits.resize(rows.shape[0])
        last = residual
        if len(rows) < len(residual):
            last = ops.take_rows(residual, rows, out=self._last_rows.of("residual", hidden))
        logits = self.head(last, self._logits.of("logits", self.config.vocab_size), self._last_rows)
        self.scale_logits(logits)
        return logits

    def scale_logits(self, logits: Tensor) -> None:
        """What the family does to logits after the projection, in place."""
        scales = self.config.scales
        if scales.logits != 1.0 or scales.logits_soft_cap:
            ops.scale_logits(logits, scales.logits, scales.logits_soft_cap)

    def hidden_states(self, rows: list[int]) -> Tensor:
        """Of these of the last step's tokens, behind the last norm: [len(rows), hidden_size]."""
        states = ops.take_rows(self._residual, rows)
        return states if self.head is None or self.head.norm is None else self.head.norm(states)

    @property
    def parts(self) -> Parts:
        """All that has weights."""
        return self.embedding, list(self.layers), self.head, self.score, self.token_inputs, self.positions

    def weight_bytes(self) -> int:
        """Bytes of all weights; embeddings tied to the vocabulary projection count once."""
        return sum(tensor.nbytes for tensor in tensors_of(self.parts))
