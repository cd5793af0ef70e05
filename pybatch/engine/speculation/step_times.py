"""What a step takes by its numbers of sequences and tokens, learned as steps run."""

from __future__ import annotations

import math

from pybatch.engine.learned_costs import LearnedCosts

_FEW = 8  # tokens
_NOISE = 0.15  # of the first step's time, as its standard deviation


class StepLine:
    """seconds = fixed + per_token * tokens."""

    __slots__ = ("_costs",)

    def __init__(self, costs: LearnedCosts) -> None:
        self._costs = costs

    @classmethod
    def through(cls, tokens: int, seconds: float, per_token: float = math.inf) -> StepLine:
        """By one step, of which half the time is thought to be the tokens'; or per_token for each, where it is known
        that a token takes no more, and seldom much less."""
        slope, doubt = (0.5 * seconds / tokens, 1.0) if per_token == math.inf else (per_token, 0.3)
        slope = min(slope, 0.9 * seconds / tokens)
        doubt *= slope
        costs = LearnedCosts((seconds - slope * tokens, slope), (math.hypot(doubt * tokens, _NOISE * seconds), doubt))
        # The step's time is known much better than how it is made up.
        costs.covariance[0][1] = costs.covariance[1][0] = -tokens * doubt**2
        return cls(costs)

    @property
    def per_token(self) -> float:
        return self._costs.costs[1]

    def seconds(self, tokens: int) -> float:
        return self._costs.seconds((1, tokens))

    @property
    def least_per_token(self) -> float:
        """One standard deviation below what is known, at least 0: what may be quick is tried, and then it is known."""
        return max(0.0, self.per_token - self._costs.deviation(1))

    def most_more(self, tokens: int) -> int:
        """How many more tokens may be tried beside so many: what is not known of their time is at most a quarter of the
        step's then. A few in any case, which makes it known."""
        return max(_FEW, int(0.25 * self.seconds(tokens) / max(self._costs.deviation(1), 1e-12)))

    def observe(self, tokens: int, seconds: float) -> None:
        self._costs.observe((1, tokens), seconds)


class StepTimes:
    """A line for every doubling of the number of sequences."""

    def __init__(self) -> None:
        self._lines: dict[int, StepLine] = {}
        self.most_sequences = 0  # of a step that was seen

    def line(self, sequences: int) -> StepLine | None:
        """None where no step of such numbers has been seen."""
        return self._lines.get(sequences.bit_length())

    def nearest(self, sequences: int) -> StepLine | None:
        """That of the most sequences up to these, or else of the fewest; None where no step has been seen."""
        kinds = sorted(self._lines)
        return (
            self._lines[max((kind for kind in kinds if kind <= sequences.bit_length()), default=kinds[0])]
            if kinds
            else None
        )

    def observe(self, sequences: int, tokens: int, seconds: float, per_token: float = math.inf) -> None:
        """per_token: what a token takes at most, as far as is known before the first step of its kind."""
        line = self._lines.get(sequences.bit_length())
        if line is None:
            self._lines[sequences.bit_length()] = StepLine.through(tokens, seconds, per_token)
        else:
            line.observe(tokens, seconds)
        self.most_sequences = max(self.most_sequences, sequences)
