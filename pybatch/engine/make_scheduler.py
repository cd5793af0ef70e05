"""A scheduler and its parts as an engine's settings have them: for the engine itself, and for what runs one without a
model."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

from pybatch.engine.config import EngineConfig
from pybatch.engine.scheduling.admission import admission
from pybatch.engine.scheduling.block_pool import BlockPool, Pin
from pybatch.engine.scheduling.prefix_store import PrefixStore
from pybatch.engine.scheduling.scheduler import Scheduler
from pybatch.engine.scheduling.state_slots import StateSlots
from pybatch.engine.scheduling.swap_space import SwapSpace
from pybatch.engine.scheduling.target_budget import TargetBudget


def make_scheduler(
    config: EngineConfig,
    pool: BlockPool,
    *,
    swap_space: SwapSpace | None = None,
    prefix_store: PrefixStore | None = None,
    states: StateSlots | None = None,
    targets: TargetBudget | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> Scheduler:
    return Scheduler(
        pool,
        admission(config.batching),
        block_size=config.block_size,
        max_num_seqs=config.max_num_seqs,
        max_num_batched_tokens=config.max_num_batched_tokens,
        prefix_caching=config.enable_prefix_caching,
        max_background_tokens=config.max_background_tokens,
        predict_lengths=config.predict_lengths,
        swap_space=swap_space,
        prefix_store=prefix_store,
        states=states,
        user_weights=config.weights,
        targets=targets,
        clock=clock,
    )


def make_states(config: EngineConfig, num_states: int, pins: Iterable[Pin] = ()) -> StateSlots | None:
    """num_states: 0 of a model that has no recurrent ones. pins: of prefixes whose states are in these slots."""
    if not num_states:
        return None
    return StateSlots(
        BlockPool(num_states, [pin.state for pin in pins if pin.state is not None]),
        config.block_size,
        max_num_seqs=min(config.max_num_seqs, config.max_num_batched_tokens),
        keeps=config.enable_prefix_caching,
    )
