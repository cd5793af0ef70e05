"""What a step takes by its numbers of sequences and tokens, learned as steps run."""

from __future__ import annotations

from pybatch.engine.learned_costs import LearnedCosts

_FEW = 32  # tokens


class StepLine:
    """seconds = fixed + per_token * tokens."""

    __slots__ = ("_costs",)

    def __init__(self, costs: LearnedCosts) -> None:
        self._costs = costs

    @classmethod
    def through(cls, tokens: int, seconds: float) -> StepLine:
        """By one step, of which a tenth of the time is thought to be the tokens'."""
        slope = 0.1 * seconds / tokens
        return cls(LearnedCosts((0.9 * seconds, slope), (0.5 * seconds, 2 * slope)))

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

    def line(self, sequences: int) -> StepLine | None:
        """None where no step of such numbers has been seen."""
        return self._lines.get(sequences.bit_length())

    def observe(self, sequences: int, tokens: int, seconds: float) -> None:
        line = self._lines.get(sequences.bit_length())
        if line is None:
            self._lines[sequences.bit_length()] = StepLine.through(tokens, seconds)
        else:
            line.observe(tokens, seconds)
