"""Whether KV blocks are better moved to the host's memory and back, or computed again."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property


class SwapCost:
    """Both are measured: how long a block takes there and back when it is first asked for, and a token from the steps
    that have run.

    seconds_per_block: moves a few blocks and returns the time for one. seconds_per_token: of a step, as far as known.
    """

    def __init__(self, seconds_per_block: Callable[[], float], seconds_per_token: Callable[[], float]) -> None:
        self._measure, self._seconds_per_token = seconds_per_block, seconds_per_token

    @cached_property
    def seconds_per_block(self) -> float:
        return self._measure()

    def pays(self, num_tokens: int, num_blocks: int) -> bool:
        return num_blocks * self.seconds_per_block < num_tokens * self._seconds_per_token()
