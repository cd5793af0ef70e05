"""How many prompt tokens a job's rows have in common, as the prefix cache could find them."""

from __future__ import annotations

from array import array
from collections.abc import Sequence

from pybatch.engine.scheduling.block_pool import BlockKey


class PrefixSavings:
    """Counts, in memory that does not grow with the rows, the prompt tokens that need not be computed if rows come in
    the best order and nothing is evicted: every full block is computed once. A prompt's last token always is.

    Exact up to `limit` different blocks. With more, it counts those whose hash is in a share of all hashes that halves
    as they come (adaptive sampling, Flajolet 1990), within about 1.2 / sqrt(limit) of their number.
    """

    def __init__(self, block_size: int, limit: int = 1 << 18) -> None:
        self._block_size, self._limit = block_size, limit
        self._usable = 0  # blocks that a prompt could find
        self._halvings = 0
        self._seen: dict[int, bool] = {}  # hashes of blocks: whether a prompt ends with it, and so computes it anyway

    def add(self, token_ids: Sequence[int]) -> None:
        size, tokens = self._block_size, array("q", token_ids)
        usable = (len(tokens) - 1) // size
        key: BlockKey | None = None
        for i in range(len(tokens) // size):
            key = BlockKey.chained(key, tokens[i * size : (i + 1) * size].tobytes())
            number = int.from_bytes(key.digest[:8], "little")
            if self._counts(number):
                self._seen[number] = self._seen.get(number, False) or i == usable
        self._usable += max(0, usable)
        while len(self._seen) > self._limit:
            self._halvings += 1
            self._seen = {number: ends for number, ends in self._seen.items() if self._counts(number)}

    def _counts(self, number: int) -> bool:
        return number >> (64 - self._halvings) == 0

    @property
    def tokens(self) -> int:
        computed = sum(not ends for ends in self._seen.values()) << self._halvings
        return max(0, self._usable - computed) * self._block_size
