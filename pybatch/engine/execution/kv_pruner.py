"""Prunes KV caches: what the scheduler has decided, done to the blocks' contents."""

from __future__ import annotations

import torch

from pybatch import ops
from pybatch.engine.execution.attention_mass import AttentionMass
from pybatch.engine.execution.kv_cache import KvCache
from pybatch.engine.execution.token_choice import chosen
from pybatch.engine.kv_policies import StreamingLLM
from pybatch.engine.scheduling.pruning import Gathered, Turned
from pybatch.engine.scheduling.sequence import Sequence
from pybatch.engine.scheduling.table_pruner import TablePruner
from pybatch.model.batch import LayerCache
from pybatch.model.blocks.attention import Attention
from pybatch.model.config import AttentionConfig
from pybatch.model.decoder import Decoder


class KvPruner:
    """mass: the attention that tokens have had."""

    def __init__(self, kv_cache: KvCache, decoder: Decoder, mass: AttentionMass) -> None:
        self._kv_cache = kv_cache
        self._rotary = [decoder.rotary[each.rope] for each in decoder.config.attentions]
        self._device = decoder.device
        self.mass = mass

    def prune(self, tables: TablePruner, sequence: Sequence) -> None:
        """Prunes a sequence that has come to next_pruning; what it drops is free at once."""
        pruned = tables.prune(sequence)
        if isinstance(pruned, Turned):
            self._turn(pruned)
        elif pruned is not None:
            self._gather(sequence, pruned)

    def _turn(self, turned: Turned) -> None:
        if not turned.copies:
            return
        self._kv_cache.copy_blocks(turned.copies)
        blocks = torch.tensor([copy for _, copy in turned.copies], device=self._device)
        for cache, table in zip(self._kv_cache.layers, self._rotary, strict=True):
            assert isinstance(cache, LayerCache)
            # The table's entries may be scaled (YaRN's attention factor), as the keys are already.
            angles = (table[turned.distance] / table[0, 0]).expand(len(blocks), -1).contiguous()
            ops.rotate_keys(*cache.tensors, blocks, angles, cache.key_offset)

    def _gather(self, sequence: Sequence, gathered: Gathered) -> None:
        policy = sequence.request.params.kv_policy
        assert policy is not None
        assert not isinstance(policy, StreamingLLM)
        mass = self.mass.of(gathered.row, gathered.length)
        tokens = chosen(policy, mass)
        self.mass.of(gathered.row, gathered.kept).copy_(mass.gather(-1, tokens))
        source, destination = (
            torch.tensor(blocks, dtype=torch.int32, device=self._device)
            for blocks in (gathered.source, gathered.destination)
        )
        for cache, indices in zip(self._kv_cache.layers, tokens.int(), strict=True):
            assert isinstance(cache, LayerCache)
            ops.gather_kv(*cache.tensors, source, indices, destination)


def no_pruning(decoder: Decoder) -> str | None:
    """Why this model's KV caches cannot be pruned; None if they can."""
    mixers = decoder.config.attentions
    if not all(isinstance(mixer, AttentionConfig) for mixer in mixers):
        return "the model keeps one latent vector a token for all heads"
    if any(isinstance(layer.mixer, Attention) and layer.mixer.config.kv_of is not None for layer in decoder.layers):
        return "the model's layers read each other's keys and values"
    if len(mixers) < len(decoder.layers):
        return "the model has recurrent states, of which nothing can be dropped"
    if len({(each.num_kv_heads, each.head_dim) for each in mixers}) > 1:
        return "the model's layers have keys of different shapes"
    if any(mixer.window for mixer in mixers):
        return "the model has sliding windows, which count the tokens in the cache"
    if any(mixer.soft_cap or mixer.sinks for mixer in mixers):
        return "the model's attention has soft caps or sinks, which the sums of attention do not know"
    return None
