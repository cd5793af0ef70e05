"""Pipeline parallelism: processes that have a model's layers one behind the other, and hand on the residual stream.

A step goes through the stages in parts of some sequences each, so that a stage computes a part while the one behind it
has the part before (GPipe, Huang et al. 2019). A token's bits do not depend on what is beside it, so that they are
those of one process.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from pybatch.machine.ranks import Stages
from pybatch.model.batch import AnyCache, ForwardBatch
from pybatch.model.buffers import Buffers
from pybatch.model.config import ModelConfig
from pybatch.model.decoder import Decoder
from pybatch.model.errors import ModelError

# Tokens of a part at least: of fewer, reading a stage's weights again takes longer than what is gained by overlap.
PART_TOKENS = {"cpu": 32, "cuda": 256}


class StageDecoder(Decoder):
    """A stage: its config has its own layers alone. Behind the last stage are the logits; before, nothing."""

    def __init__(self, config: ModelConfig, dtype: torch.dtype, *, stages: Stages, **parts: Any) -> None:
        self.stages = stages
        super().__init__(config, dtype, **parts)

    def make_buffers(self, rows: int = 0) -> None:
        super().make_buffers(rows)
        self._whole = Buffers({"residual": self.config.hidden_size}, self.dtype, self.device, rows)

    def forward(self, batch: ForwardBatch, caches: Sequence[AnyCache]) -> Tensor:
        self._whole.resize(batch.token_ids.shape[0])
        self._residual = self._whole.of("residual", self.config.hidden_size)
        for first, last, part in in_parts(batch, 2 * self.stages.count, PART_TOKENS[self.device.type]):
            residual = self._residual[first:last]
            self._buffers.resize(last - first)
            self.adapters.slots = part.adapters
            if self.stages.is_first:
                self._embed(part, residual)
            else:
                self.stages.receive(residual)
            self._run_layers(part, residual, caches)
            if not self.stages.is_last:
                self.stages.send(residual)
        self.last_adapters.slots = batch.last_adapters
        if not self.stages.is_last:
            return torch.empty(0, self.config.vocab_size, device=self.device)
        return self._project(self._residual, batch.logits_rows)


def in_parts(batch: ForwardBatch, most: int, tokens: int) -> list[tuple[int, int, ForwardBatch]]:
    """Its sequences in order, as at most so many batches of at least so many tokens, each with its first row and the
    one behind its last; what a sequence reads of another of the step, that one has written in its part or before."""
    starts = batch.query_start.tolist()
    wanted = max(1, min(most, starts[-1] // tokens))
    ends = [0]
    for s, row in enumerate(starts[1:], 1):
        if row * wanted >= len(ends) * starts[-1] and row > starts[ends[-1]]:
            ends.append(s)
    return [(starts[s], starts[end], _part(batch, s, end, starts)) for s, end in pairwise(ends)]


def _part(batch: ForwardBatch, s: int, end: int, starts: list[int]) -> ForwardBatch:
    rows, sequences = slice(starts[s], starts[end]), slice(s, end)
    source, destination, adapters = batch.state_source, batch.state_destination, batch.adapters
    return replace(
        batch,
        token_ids=batch.token_ids[rows],
        positions=batch.positions[rows],
        slots=batch.slots[rows],
        block_tables=batch.block_tables[sequences],
        query_start=batch.query_start[s : end + 1] - starts[s],
        seq_lens=batch.seq_lens[sequences],
        state_source=None if source is None else source[sequences],
        state_destination=None if destination is None else destination[sequences],
        adapters=None if adapters is None else adapters[rows],
    )


def of_stage(config: ModelConfig, stages: Stages) -> ModelConfig:
    """The config of a stage's layers; the first stages have one more where they don't come out even, as the last has
    the projection to the vocabulary. Raises ModelError for a model that cannot be split so."""
    count, size, name = config.num_layers, stages.count, "pipeline_parallel_size"
    if size > count:
        raise ModelError(f"{name}: expected at most {count}, the layers of {config.name}, got {size}")
    if config.token_vocab or any(getattr(layer.mixer, "kv_of", None) is not None for layer in config.layers):
        raise ModelError(
            f"{name}: expected 1 for {config.architecture}, whose layers read what others or tokens have, got {size}"
        )
    first = min(stages.stage, count % size) + count // size * stages.stage
    own = config.layers[first : first + count // size + (stages.stage < count % size)]
    if {type(layer.mixer) for layer in own} != {type(layer.mixer) for layer in config.layers}:
        raise ModelError(f"{name}: expected fewer, so that each has layers of all kinds of {config.name}, got {size}")
    return replace(config, layers=own, first_layer=first)
