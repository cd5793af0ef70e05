"""What a step takes by its numbers of sequences and tokens, learned as steps run."""

from __future__ import annotations

import math
from dataclasses import dataclass

_NOISE = 0.15  # of a step's time, as its standard deviation
_FEW = 32  # tokens
_DRIFT = 0.005  # of what is known, from step to step


@dataclass(slots=True)
class StepLine:
    """seconds = fixed + per_token * tokens, followed by a Kalman filter: what no step tells of grows uncertain, and a
    number of tokens that never varies says nothing of what one more would take."""

    fixed: float
    per_token: float
    variance: float  # of fixed
    covariance: float
    token_variance: float  # of per_token

    @classmethod
    def through(cls, tokens: int, seconds: float) -> StepLine:
        """By one step, of which a tenth of the time is thought to be the tokens'."""
        slope = 0.1 * seconds / tokens
        return cls(0.9 * seconds, slope, (0.5 * seconds) ** 2, 0.0, (2 * slope) ** 2)

    def seconds(self, tokens: int) -> float:
        return self.fixed + self.per_token * tokens

    @property
    def least_per_token(self) -> float:
        """One standard deviation below what is known, at least 0: what may be quick is tried, and then it is known."""
        return max(0.0, self.per_token - math.sqrt(self.token_variance))

    def most_more(self, tokens: int) -> int:
        """How many more tokens may be tried beside so many: what is not known of their time is at most a quarter of the
        step's then. A few in any case, which makes it known."""
        return max(_FEW, int(0.25 * self.seconds(tokens) / max(math.sqrt(self.token_variance), 1e-12)))

    def observe(self, tokens: int, seconds: float) -> None:
        expected = self.seconds(tokens)
        self.variance += (_DRIFT * expected) ** 2
        self.token_variance += (_DRIFT * expected / tokens) ** 2
        fixed_gain = self.variance + self.covariance * tokens
        token_gain = self.covariance + self.token_variance * tokens
        variance = fixed_gain + token_gain * tokens + (_NOISE * expected) ** 2
        limit = 3 * math.sqrt(variance)  # beyond it is no step's own time: another process had the machine
        error = min(max(seconds - expected, -limit), limit)
        self.fixed += fixed_gain / variance * error
        self.per_token += token_gain / variance * error
        self.variance -= fixed_gain**2 / variance
        self.covariance -= fixed_gain * token_gain / variance
        self.token_variance = max(self.token_variance - token_gain**2 / variance, 0.0)


class StepTimes:
    """A line for every doubling of the number of sequences."""

    def __init__(self) -> None:
        self._lines: dict[int, StepLine] = {}

    def line(self, sequences: int) -> StepLine | None:
        """None where no step of such numbers has been seen."""
        return self._lines.get(sequences.bit_length())

    def observe(self, sequences: int, tokens: int, seconds: float) -> None:
        line = self._lines.get(sequences.bit_length())
        if line is None:
            self._lines[sequences.bit_length()] = StepLine.through(tokens, seconds)
        else:
            line.observe(tokens, seconds)
