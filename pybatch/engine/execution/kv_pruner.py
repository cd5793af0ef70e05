"""Prunes KV caches: what the scheduler has decided, done to the blocks' contents."""

from __future__ import annotations

import torch
from torch import Tensor

from pybatch import ops
from pybatch.engine.execution.attention_mass import AttentionMass
from pybatch.engine.execution.kv_cache import KvCache
from pybatch.engine.execution.token_choice import chosen
from pybatch.engine.kv_policies import StreamingLLM
from pybatch.engine.scheduling.pruning import Gathered, Turned
from pybatch.engine.scheduling.scheduler import Scheduler
from pybatch.engine.scheduling.sequence import Sequence
from pybatch.model.decoder import Decoder


class KvPruner:
    """rotary: the model's table of positions. mass: the attention that tokens have had."""

    def __init__(self, kv_cache: KvCache, rotary: Tensor, mass: AttentionMass) -> None:
        self._kv_cache = kv_cache
        self._rotary = rotary
        self.mass = mass

    def prune(self, scheduler: Scheduler, sequence: Sequence) -> None:
        """Prunes a sequence that has come to next_pruning; what it drops is free at once."""
        pruned = scheduler.prune(sequence)
        if isinstance(pruned, Turned):
            self._turn(pruned)
        elif pruned is not None:
            self._gather(sequence, pruned)

    def _turn(self, turned: Turned) -> None:
        if not turned.copies:
            return
        self._kv_cache.copy_blocks(turned.copies)
        device = self._rotary.device
        blocks = torch.tensor([copy for _, copy in turned.copies], device=device)
        # The table's entries may be scaled (YaRN's attention factor), as the keys are already.
        angles = (self._rotary[turned.distance] / self._rotary[0, 0]).expand(len(blocks), -1).contiguous()
        for cache in self._kv_cache.layers:
            ops.rotate_keys(*cache.tensors, blocks, angles, cache.key_offset)

    def _gather(self, sequence: Sequence, gathered: Gathered) -> None:
        policy = sequence.request.params.kv_policy
        assert policy is not None
        assert not isinstance(policy, StreamingLLM)
        mass = self.mass.of(gathered.row, gathered.length)
        tokens = chosen(policy, mass)
        self.mass.of(gathered.row, gathered.kept).copy_(mass.gather(-1, tokens))
        device = self._rotary.device
        source, destination = (
            torch.tensor(blocks, dtype=torch.int32, device=device) for blocks in (gathered.source, gathered.destination)
        )
        for cache, indices in zip(self._kv_cache.layers, tokens.int(), strict=True):
            ops.gather_kv(*cache.tensors, source, indices, destination)


def no_pruning(decoder: Decoder) -> str | None:
    """Why this model's KV caches cannot be pruned; None if they can."""
    if any(layer.window for layer in decoder.layers):
        return "the model has sliding windows, which count the tokens in the cache"
    return None
