"""When a request's KV cache is pruned and which blocks are dropped: numbers of tokens and blocks alone.

Pruning happens at points that depend on the request's own length, and no chunk crosses one. So a token is computed over
the same cache whether it was decoded, or computed again in a chunk after its sequence was preempted.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

from pybatch.engine.kv_policies import KvPolicy, StreamingLLM

NEVER = sys.maxsize


class WindowPruning:
    """Drops whole blocks between the sinks and a window of the latest tokens.

    first_point: the first number of computed tokens at which something is dropped; before it all are kept.
    """

    def __init__(self, policy: StreamingLLM, prompt_length: int, block_size: int) -> None:
        self.sink_blocks = -(-policy.sinks // block_size)
        self.first_point = max(prompt_length, policy.window - 1 + (self.sink_blocks + 1) * block_size)
        self._window, self._block_size = policy.window, block_size

    def next_point(self, num_computed: int) -> int:
        """The next point behind num_computed tokens."""
        if num_computed < self.first_point:
            return self.first_point
        return num_computed + self._block_size - (num_computed + 1 - self._window) % self._block_size

    def num_pruned(self, num_computed: int) -> int:
        """How many tokens are gone once the point num_computed is passed."""
        return ((num_computed + 1 - self._window) // self._block_size - self.sink_blocks) * self._block_size

    @property
    def most_tokens(self) -> int:
        """For which a sequence has blocks behind its first point: the sinks count twice, as they were and turned."""
        return (2 * self.sink_blocks - (-(self._window - 1) // self._block_size) + 1) * self._block_size


Pruning = WindowPruning


@dataclass(frozen=True, slots=True)
class Turned:
    """Blocks to be copied, as (source, destination), and how far the keys of the copies are to be turned, in tokens."""

    copies: list[tuple[int, int]]
    distance: int


def make_pruning(policy: KvPolicy, prompt_length: int, block_size: int) -> Pruning:
    return WindowPruning(policy, prompt_length, block_size)
