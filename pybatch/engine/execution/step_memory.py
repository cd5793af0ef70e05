"""What steps take of a device's memory besides the weights and the KV pool."""

from __future__ import annotations

import torch

from pybatch.engine.config import EngineConfig
from pybatch.engine.execution.graphs import recorder_for
from pybatch.engine.execution.kv_cache import KvCache, kv_layout
from pybatch.engine.execution.model_runner import ModelRunner
from pybatch.engine.execution.state_cache import StateCache, state_layout
from pybatch.engine.scheduling.sequence import NO_STATE
from pybatch.machine.memory import free_memory
from pybatch.model.batch import ForwardBatch
from pybatch.model.decoder import Decoder


def step_memory(decoder: Decoder, config: EngineConfig) -> int:
    """Bytes that are still to be taken: by graphs and the buffers of steps, where they are recorded at the start. It
    comes of a rehearsal, the largest step and all graphs on a pool of one block, after which the decoder has its
    buffers. 0 on a CPU, where steps take little."""
    states, device = state_layout(decoder), decoder.device
    if not recorder_for(device).at_start:
        return 0
    caches = decoder.caches(
        KvCache(kv_layout(decoder, config), 1, device).layers,
        [] if states is None else StateCache(states, 1, device).layers,
    )
    runner = ModelRunner.of(config, decoder, caches, _length(decoder, config))
    decoder.forward(_largest_step(decoder, config), caches)
    runner.record_graphs(show=False)
    free = free_memory(device)
    del runner
    torch.cuda.empty_cache()
    return max(free_memory(device) - free, 0)


def _length(decoder: Decoder, config: EngineConfig) -> int:
    """The most tokens of a sequence."""
    return min(config.max_model_len or decoder.context_length, decoder.context_length)


def _largest_step(decoder: Decoder, config: EngineConfig) -> ForwardBatch:
    """As many tokens of prompts as may be, whose keys and values are kept nowhere."""
    length = _length(decoder, config)
    tokens = min(config.max_num_batched_tokens, length * config.max_num_seqs)
    starts = torch.tensor([*range(0, tokens, length), tokens], dtype=torch.int32)
    count, rows = len(starts) - 1, min(config.max_num_seqs, tokens)
    positions = torch.arange(tokens) % length
    no_states = None if state_layout(decoder) is None else torch.full((count,), NO_STATE, dtype=torch.int32)
    return ForwardBatch(
        token_ids=torch.zeros(tokens, dtype=torch.int64),
        positions=positions,
        slots=torch.full((tokens,), -1),
        block_tables=torch.zeros(count, -(-length // config.block_size), dtype=torch.int32),
        query_start=starts,
        seq_lens=starts.diff(),
        logits_rows=torch.arange(rows),
        state_source=no_states,
        state_destination=no_states,
    ).to(decoder.device)
