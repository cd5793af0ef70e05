"""When a request's KV cache is pruned and which of its blocks stay: numbers of tokens and blocks alone.

Pruning happens at points that depend on the request's own length, and no chunk crosses one. So a token is computed over
the same cache whether it was decoded, or computed again in a chunk after its sequence was preempted.
"""

from __future__ import annotations

import sys
from array import array
from dataclasses import dataclass
from typing import Protocol

from pybatch.engine.kv_policies import HeavyHitters, KvPolicy, SnapKV, StreamingLLM

NEVER = sys.maxsize


class Pruning(Protocol):
    """One request's.

    first_point: the first number of computed tokens at which something is dropped; before it all are kept.
    most_shared: the leading tokens that may come from the prefix cache. peak_tokens: for how many it has blocks at most
    at once, where that is more than for all of its tokens; 0: it never is. observed_from, observed_to: the tokens whose
    queries' attention is summed.
    """

    first_point: int
    most_shared: int
    peak_tokens: int
    observed_from: int
    observed_to: int

    def next_point(self, num_computed: int) -> int:
        """The next point behind num_computed tokens."""

    def num_pruned(self, num_computed: int) -> int:
        """How many tokens are gone once the point num_computed is passed."""

    def num_held(self, num_tokens: int) -> int:
        """For how many tokens it has blocks when it has come to num_tokens."""


class WindowPruning:
    """Drops whole blocks between the sinks and a window of the latest tokens."""

    observed_from = observed_to = 0

    def __init__(self, policy: StreamingLLM, prompt_length: int, block_size: int) -> None:
        self.sink_blocks = -(-policy.sinks // block_size)
        self.first_point = max(prompt_length, policy.window - 1 + (self.sink_blocks + 1) * block_size)
        self.most_shared = self.first_point - 1
        self._window, self._block_size = policy.window, block_size
        # The sinks count twice, as they were and turned.
        self.peak_tokens = (2 * self.sink_blocks - (-(policy.window - 1) // block_size) + 1) * block_size

    def next_point(self, num_computed: int) -> int:
        if num_computed < self.first_point:
            return self.first_point
        return num_computed + self._block_size - (num_computed + 1 - self._window) % self._block_size

    def num_pruned(self, num_computed: int) -> int:
        return ((num_computed + 1 - self._window) // self._block_size - self.sink_blocks) * self._block_size

    def num_held(self, num_tokens: int) -> int:
        return min(num_tokens, self.peak_tokens)


class PromptPruning:
    """Keeps chosen tokens of the prompt, at its end."""

    peak_tokens = 0

    def __init__(self, policy: SnapKV, prompt_length: int, block_size: int) -> None:
        kept = policy.budget + policy.observed
        self._num_pruned = max(0, prompt_length - kept)
        self.first_point = prompt_length if self._num_pruned else NEVER
        self.observed_from = self.observed_to = self.most_shared = NEVER
        if self._num_pruned:
            self.observed_from = self.most_shared = prompt_length - policy.observed
            self.observed_to = prompt_length

    def next_point(self, num_computed: int) -> int:
        return self.first_point if num_computed < self.first_point else NEVER

    def num_pruned(self, num_computed: int) -> int:
        return self._num_pruned

    def num_held(self, num_tokens: int) -> int:
        return num_tokens - self._num_pruned


class HeavyPruning:
    """Keeps so many chosen tokens, at the prompt's end and whenever a block's worth has come on top."""

    most_shared = observed_from = peak_tokens = 0
    observed_to = NEVER

    def __init__(self, policy: HeavyHitters, prompt_length: int, block_size: int) -> None:
        self._kept, self._block_size = policy.heavy + policy.recent, block_size
        self.first_point = prompt_length if prompt_length > self._kept else self._kept + block_size

    def next_point(self, num_computed: int) -> int:
        return self.first_point if num_computed < self.first_point else num_computed + self._block_size

    def num_pruned(self, num_computed: int) -> int:
        return num_computed - self._kept

    def num_held(self, num_tokens: int) -> int:
        return min(num_tokens, self._kept + self._block_size)


def make_pruning(policy: KvPolicy, prompt_length: int, block_size: int) -> Pruning:
    if isinstance(policy, StreamingLLM):
        return WindowPruning(policy, prompt_length, block_size)
    kind = PromptPruning if isinstance(policy, SnapKV) else HeavyPruning
    return kind(policy, prompt_length, block_size)  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True)
class Turned:
    """Blocks to be copied, as (source, destination), and how far the keys of the copies are to be turned, in tokens."""

    copies: list[tuple[int, int]]
    distance: int


@dataclass(frozen=True, slots=True)
class Gathered:
    """Tokens to be chosen for each layer and KV head, out of `length` in the blocks `source`, and moved to the blocks
    `destination`, some of which may be those at the same places of `source`. row: of the attention that they have
    had."""

    source: array[int]
    destination: array[int]
    length: int
    kept: int
    row: int
