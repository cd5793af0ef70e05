"""What the scheduler asks of a store of prefixes below the KV pool."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from pybatch.engine.scheduling.block_pool import BlockKey


class PrefixStore(Protocol):
    def count(self, keys: Iterable[BlockKey]) -> int:
        """How many of the first of these it has, as far as can be told without reading them."""
        ...

    def load(self, keys: Iterable[BlockKey], blocks: Iterable[int]) -> int:
        """Fills these blocks of the pool with what the keys stand for, now, up to the first that is not there. Returns
        how many it has filled; the next one's content is lost."""
        ...

    def want(self, keys: Iterable[BlockKey]) -> None:
        """Has a prefix from its first block on stored, once this step is computed."""
        ...
