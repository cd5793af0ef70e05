"""What things take, learned from sums of them."""

from __future__ import annotations

import math
from collections.abc import Sequence

_NOISE = 0.15  # of what is measured, as its standard deviation
_DRIFT = 0.005  # of what is known, from one measurement to the next


class LearnedCosts:
    """seconds = the sum of counts, each times a cost that a Kalman filter follows: what no measurement tells of grows
    uncertain, and counts that never vary leave open which of them costs what.

    costs, deviations: of each count, as thought at first, and by how much it may be another (one standard deviation).
    """

    __slots__ = ("costs", "covariance")

    def __init__(self, costs: Sequence[float], deviations: Sequence[float]) -> None:
        self.costs = list(costs)
        self.covariance = [
            [deviation**2 if i == j else 0.0 for j in range(len(costs))] for i, deviation in enumerate(deviations)
        ]

    def seconds(self, counts: Sequence[float]) -> float:
        return sum([cost * count for cost, count in zip(self.costs, counts, strict=True)])

    def deviation(self, index: int) -> float:
        return math.sqrt(self.covariance[index][index])

    def observe(self, counts: Sequence[float], seconds: float) -> None:
        expected, covariance = self.seconds(counts), self.covariance
        for i, count in enumerate(counts):
            if count:
                covariance[i][i] += (_DRIFT * expected / count) ** 2
        gains = [sum([row[j] * count for j, count in enumerate(counts)]) for row in covariance]
        variance = sum([gain * count for gain, count in zip(gains, counts, strict=True)]) + (_NOISE * expected) ** 2
        limit = 3 * math.sqrt(variance)  # beyond it is not what was counted: another process had the machine
        error = min(max(seconds - expected, -limit), limit)
        if variance <= 0:
            return
        for i, gain in enumerate(gains):
            self.costs[i] += gain / variance * error
            for j, other in enumerate(gains):
                covariance[i][j] -= gain * other / variance
            covariance[i][i] = max(covariance[i][i], 0.0)
