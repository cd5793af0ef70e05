"""How many prompt tokens a job's rows have in common, as the prefix cache could find them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

Hashes = np.ndarray[tuple[int], np.dtype[np.uint64]]

_BASE = 0x9E3779B97F4A7C15  # odd: a prefix's hash is the sum of its tokens' hashes times the powers of it


class PrefixSavings:
    """Counts, in memory that does not grow with the rows, the prompt tokens that need not be computed if rows come in
    the best order and nothing is evicted: each prefix is computed once. A prompt's last token always is.

    Exact up to `limit` different prefixes. With more, it counts those whose hash is in a share of all hashes that
    halves as they come (adaptive sampling, Flajolet 1990), within about 1.2 / sqrt(limit) of their number.
    """

    def __init__(self, limit: int = 1 << 18) -> None:
        self._limit = limit
        self._usable = 0  # tokens that a prompt could find
        self._halvings = 0
        self._seen: dict[int, bool] = {}  # hashes of prefixes: whether a prompt ends with it, and so computes it anyway
        self._powers: Hashes = np.ones(1, np.uint64)

    def add(self, token_ids: Sequence[int]) -> None:
        """token_ids: of one prompt, at least one."""
        hashes = self._prefix_hashes(token_ids)
        for number in hashes[hashes <= self._most].tolist():
            self._seen.setdefault(number, False)
        if (last := int(hashes[-1])) in self._seen:
            self._seen[last] = True
        self._usable += len(hashes) - 1
        while len(self._seen) > self._limit:
            self._halvings += 1
            self._seen = {number: ends for number, ends in self._seen.items() if number <= self._most}

    @property
    def _most(self) -> np.uint64:
        """The largest hash that counts."""
        return np.uint64((1 << 64) - 1 >> self._halvings)

    def _prefix_hashes(self, token_ids: Sequence[int]) -> Hashes:
        """Of each prefix of a prompt, the shortest first."""
        tokens = np.asarray(token_ids, np.int64).view(np.uint64)
        if len(tokens) > len(self._powers):
            factors = np.full(2 * len(tokens), _BASE, np.uint64)
            factors[0] = 1
            self._powers = np.cumprod(factors, dtype=np.uint64)
        return _mixed(np.cumsum(_mixed(tokens) * self._powers[: len(tokens)], dtype=np.uint64))

    @property
    def tokens(self) -> int:
        computed = sum(not ends for ends in self._seen.values()) << self._halvings
        return max(0, self._usable - computed)


def _mixed(x: Hashes) -> Hashes:
    """Every bit of each depends on all of its bits (SplitMix64, Steele et al. 2014)."""
    x = x + np.uint64(_BASE)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
