"""The pool of recurrent states: a slot holds those of all layers of linear attention, contiguously."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from pybatch import ops
from pybatch.engine.config import EngineConfig
from pybatch.engine.execution.kv_cache import aligned, piece
from pybatch.machine.huge_pages import empty_bytes
from pybatch.machine.memory import advice, free_memory
from pybatch.model.batch import LayerState
from pybatch.model.config import GatedDeltaConfig
from pybatch.model.decoder import Decoder

_MOST_OF_MEMORY = 0.5  # of that for KV blocks and states together


@dataclass(frozen=True, slots=True)
class StateLayout:
    """The layout of a slot: of each layer of linear attention the last inputs of its convolution, in the activations'
    dtype, then the state of its heads, float32; see LayerState."""

    layers: tuple[GatedDeltaConfig, ...]
    dtype: torch.dtype

    def _pieces(self, layer: GatedDeltaConfig) -> tuple[tuple[int, ...], tuple[int, ...]]:
        return (layer.taps - 1, layer.channels), (layer.value_heads, layer.key_dim, ops.state_width(layer.value_dim))

    def _layer_bytes(self, layer: GatedDeltaConfig) -> tuple[int, int]:
        conv, recurrent = self._pieces(layer)
        return aligned(math.prod(conv) * self.dtype.itemsize), aligned(math.prod(recurrent) * torch.float32.itemsize)

    @property
    def slot_bytes(self) -> int:
        return sum([sum(self._layer_bytes(layer)) for layer in self.layers])

    def states(self, pool: Tensor) -> list[LayerState]:
        """Each layer's views of pool, [num_slots, slot_bytes] uint8."""
        found = []
        ends = accumulate(sum(self._layer_bytes(layer)) for layer in self.layers)
        for layer, end in zip(self.layers, ends, strict=True):
            conv, recurrent = self._pieces(layer)
            of_conv, of_recurrent = self._layer_bytes(layer)
            found.append(
                LayerState(
                    piece(pool, end - of_recurrent - of_conv, conv, self.dtype),
                    piece(pool, end - of_recurrent, recurrent, torch.float32),
                )
            )
        return found


class StateCache:
    """The pool's memory, and each layer's views of it. It is left uninitialised: slots that have not been written take
    no memory on a CPU. Raises ValueError if there is not enough memory."""

    def __init__(self, layout: StateLayout, num_slots: int, device: torch.device) -> None:
        try:
            pool = empty_bytes(num_slots * layout.slot_bytes, device).view(num_slots, layout.slot_bytes)
        except MemoryError as error:
            raise ValueError(
                f"max_num_seqs: no memory for {num_slots:,} recurrent states of {layout.slot_bytes:,} bytes: "
                f"give less, or a smaller memory_utilization{advice(device)}"
            ) from error
        self.layers = layout.states(pool)


def state_layout(decoder: Decoder) -> StateLayout | None:
    """None if the model has no recurrent states."""
    mixers = [layer.mixer for layer in decoder.config.layers]
    recurrent = tuple(mixer for mixer in mixers if isinstance(mixer, GatedDeltaConfig))
    return StateLayout(recurrent, decoder.dtype) if recurrent else None


def num_slots(layout: StateLayout, config: EngineConfig, device: torch.device, beside: int = 1) -> int:
    """Three for each sequence that may run, of which it uses two and the prefix cache one, as far as half of the memory
    goes. beside: ranks that share the memory. Raises ValueError if that is not enough for one sequence."""
    wanted = 3 * min(config.max_num_seqs, config.max_num_batched_tokens)
    memory = int(free_memory(device) * config.memory_utilization * _MOST_OF_MEMORY) // beside
    count = min(wanted, memory // layout.slot_bytes)
    if count < 2:
        raise ValueError(
            f"memory_utilization: half of {config.memory_utilization} of the free memory is {memory:,} bytes, "
            f"less than two recurrent states of {layout.slot_bytes:,} bytes; raise it, or the limit on memory"
            f"{advice(device)}"
        )
    return count


def refuse_unsuited(config: EngineConfig) -> None:
    """Raises ValueError for a setting that does not go with recurrent states."""
    if config.speculation is not None:
        raise ValueError("speculative_config: this model's recurrent states cannot take tokens back; expected None")
    if config.swap_space:
        raise ValueError(
            f"swap_space: this model's recurrent states are not moved to the host; expected 0, got {config.swap_space}"
        )
    if config.prefix_cache_dir is not None:
        raise ValueError("prefix_cache_dir: this model's recurrent states are not kept on disk; expected None")
