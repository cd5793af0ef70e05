"""How much an engine's caches hold: as much as memory allows, in each process that holds the model."""

from __future__ import annotations

from dataclasses import dataclass, replace

from pybatch.engine.config import EngineConfig
from pybatch.engine.execution.kv_cache import capacity, kv_layout
from pybatch.engine.execution.parallel.followers import Followers
from pybatch.engine.execution.state_cache import num_slots, refuse_unsuited, state_layout
from pybatch.engine.execution.step_memory import step_memory
from pybatch.model.decoder import Decoder


@dataclass(frozen=True, slots=True)
class CacheSizes:
    """max_model_len: the tokens that a sequence may have. kv_block_bytes: with what a draft model keeps for the block.
    num_states: slots of recurrent states, and state_bytes those of all."""

    max_model_len: int
    num_kv_blocks: int
    kv_block_bytes: int
    num_states: int
    state_bytes: int


def cache_sizes(
    decoder: Decoder, config: EngineConfig, draft_decoder: Decoder | None, followers: Followers | None
) -> CacheSizes:
    """Raises ValueError, with the numbers, for what does not fit the memory or the model."""
    models = [decoder] if draft_decoder is None else [decoder, draft_decoder]
    block_bytes = sum([kv_layout(model, config).block_bytes for model in models])
    sharing = 1 if followers is None else followers.sharing
    theirs = [] if followers is None else followers.ask("capacity", config)  # KV blocks and states of each
    states, slots, state_bytes = state_layout(decoder), 0, 0
    if states is not None:
        refuse_unsuited(config)
        slots = min([num_slots(states, config, decoder.device, sharing), *(count for _, count in theirs)])
        state_bytes = slots * states.slot_bytes
    reserved = state_bytes * sharing
    if followers is None and config.num_kv_blocks is None:
        reserved += sum([step_memory(model, config) for model in models])
    length, blocks = capacity(decoder, config, block_bytes * sharing, reserved=reserved)
    if followers is not None:
        least = replace(config, num_kv_blocks=min(blocks, *(count for count, _ in theirs)))
        length, blocks = capacity(decoder, least, block_bytes)
    return CacheSizes(length, blocks, block_bytes, slots, state_bytes)
