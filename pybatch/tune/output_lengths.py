"""How long outputs get, learnt from a few answers of which some were cut off."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable

import numpy as np


class OutputLengths:
    """The distribution of lengths without a limit, by the product-limit estimator (Kaplan and Meier, 1958): an answer
    that was cut off counts for the lengths that it did reach. Beyond the longest seen, outputs go on to end at the rate
    of all those seen.

    observed: for each answer its length in tokens, and whether it ended by itself.
    """

    def __init__(self, observed: Iterable[tuple[int, bool]]) -> None:
        ended: Counter[int] = Counter()
        reached: Counter[int] = Counter()
        for length, by_itself in observed:
            reached[length] += 1
            ended[length] += by_itself
        longest = max(reached, default=0)
        at_risk, share = reached.total(), 1.0
        alive = [1.0]
        for length in range(1, longest + 1):
            if ended[length]:
                share *= 1 - ended[length] / at_risk
            at_risk -= reached[length]
            alive.append(share)
        self._alive = np.array(alive)  # at i the share of outputs that are longer than i tokens
        tokens = sum(length * count for length, count in reached.items())
        self._end_rate = ended.total() / tokens if tokens else 0.0

    def expected(self, limit: int) -> float:
        """The mean length where outputs are cut off at a limit."""
        seen = len(self._alive) - 1
        within = float(self._alive[: min(limit, seen)].sum())
        beyond = max(0, limit - seen)
        rest = beyond if not self._end_rate else (1 - (1 - self._end_rate) ** beyond) / self._end_rate
        return within + float(self._alive[-1]) * rest

    def quantile(self, share: float, limit: int) -> int:
        """The length, at least 1, that a share in [0, 1) of outputs does not exceed, and no more than the limit."""
        seen = len(self._alive) - 1
        length = int(np.searchsorted(-self._alive, share - 1))
        if length > seen and 0 < self._end_rate < 1:
            steps = math.log((1 - share) / float(self._alive[-1])) / math.log(1 - self._end_rate)
            length = seen + math.ceil(min(steps, limit))
        elif length > seen and not self._end_rate:
            length = limit
        return max(1, min(length, limit))
