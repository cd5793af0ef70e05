"""The memory that a decoder's layers keep of sequences: keys and values in blocks, and recurrent states."""

from __future__ import annotations

from collections.abc import Callable

from pybatch.engine.config import EngineConfig
from pybatch.engine.execution.kv_cache import KvCache, kv_layout
from pybatch.engine.execution.state_cache import StateCache, state_layout
from pybatch.model.batch import AnyCache
from pybatch.model.decoder import Decoder
from pybatch.model.key_shifts import key_shifts


def make_caches(
    decoder: Decoder,
    config: EngineConfig,
    num_kv_blocks: int,
    num_states: int,
    make_kv_cache: Callable[..., KvCache] = KvCache,
) -> tuple[KvCache, list[AnyCache]]:
    """The KV pool, and what each of the decoder's layers is given. Raises ValueError if there is not enough memory."""
    layout, states = kv_layout(decoder, config), state_layout(decoder)
    shifts = key_shifts(decoder) if layout.quantised else ()
    kv_cache = make_kv_cache(layout, num_kv_blocks, decoder.device, shifts)
    of_states = [] if states is None else StateCache(states, num_states, decoder.device).layers
    return kv_cache, decoder.caches(kv_cache.layers, of_states)
