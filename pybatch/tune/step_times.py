"""How long a step of the engine takes, by what is in it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from pybatch.engine.scheduling.step import Chunk

Array = NDArray[np.float64]

_TOO_LITTLE = 1e-5  # of the mean squared relative error, for one more cost to be told apart from the others


@dataclass(frozen=True, slots=True)
class StepShape:
    """What a step computes.

    tokens: that pass through the model. sequences: that get a new token, and so need logits. context: tokens that those
    which decode attend to, in all. pairs: of a token and one it attends to, in prompts.
    """

    tokens: int
    sequences: int
    context: int
    pairs: int

    @classmethod
    def of(cls, chunks: Iterable[Chunk]) -> Self:
        """Of a step that is scheduled and not computed yet."""
        tokens = sequences = context = pairs = 0
        for chunk in chunks:
            cached, count = chunk.sequence.num_cached, chunk.num_tokens
            tokens += count
            if chunk.decodes:
                sequences += 1
                context += cached + 1
            else:
                sequences += chunk.complete
                pairs += count * cached + count * (count + 1) // 2
        return cls(tokens, sequences, context, pairs)


class StepTimes:
    """A model of a step's time: a sum of a few costs, each a coefficient that is not negative.

    What a token more costs differs between KNOTS: few tokens wait for the weights to come from memory, many for the
    arithmetic, and where a kernel's tile of rows is full (of float32 weights 12 with AVX-512) the next token costs as
    much as several behind it. So the time grows with the tokens, but need not be convex in them. A step with prompts in
    it runs op by op, and one that only decodes is a replay of a graph.
    """

    KNOTS = (8, 12, 16, 32, 64)
    COSTS = (
        "step",
        *(f"token_up_to_{knot}" for knot in KNOTS),
        "token_beyond",
        "sequence",
        "context_token",
        "attention_pair",
        "prompt_step",
    )

    def __init__(
        self, seconds: Sequence[float], error: float = 0.0, *, decodes: float = 1.0, prompts: float = 1.0
    ) -> None:
        """seconds: for each of COSTS. error: the median of the relative errors where it was measured. decodes, prompts:
        factors on the time of steps that only decode, and of those that compute prompts too."""
        self.coefficients = tuple(seconds)
        self.error = error
        self._decodes, self._prompts = decodes, prompts

    @classmethod
    def _counts(cls, shape: StepShape) -> tuple[float, ...]:
        edges = pairwise((0, *cls.KNOTS, shape.tokens + cls.KNOTS[-1]))
        tokens = (max(0, min(shape.tokens, high) - low) for low, high in edges)
        return 1, *tokens, shape.sequences, shape.context, shape.pairs, min(1, shape.pairs)

    def seconds(self, shape: StepShape) -> float:
        factor = self._prompts if shape.pairs else self._decodes
        return factor * sum(map(float.__mul__, self.coefficients, map(float, self._counts(shape))))

    def scaled(self, factor: float) -> StepTimes:
        """Every cost times a factor."""
        return StepTimes([factor * seconds for seconds in self.coefficients], self.error)

    def corrected(self, *, decodes: float, prompts: float) -> StepTimes:
        """With these factors."""
        return StepTimes(self.coefficients, self.error, decodes=decodes, prompts=prompts)

    @classmethod
    def fit(cls, shapes: Sequence[StepShape], seconds: Sequence[float]) -> StepTimes:
        """The coefficients with the least sum of squared relative errors; a cost that makes next to no difference is 0.
        Raises ValueError if nothing was measured."""
        if not shapes:
            raise ValueError("shapes: expected at least one step")
        measured = np.array(seconds)
        counts = np.array([cls._counts(shape) for shape in shapes], np.float64)
        relative = counts / measured[:, None]
        coefficients = non_negative_least_squares(relative, np.ones(len(shapes)), penalty=_TOO_LITTLE * len(shapes))
        errors = np.abs(relative @ coefficients - 1)
        return cls(coefficients.tolist(), float(np.median(errors)))

    def to_json(self) -> dict[str, Any]:
        return {"seconds": dict(zip(self.COSTS, self.coefficients, strict=True)), "error": self.error}

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> StepTimes:
        """Raises ValueError for what to_json did not make."""
        try:
            return cls([float(fields["seconds"][name]) for name in cls.COSTS], float(fields["error"]))
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"expected the costs {', '.join(cls.COSTS)}, got {fields!r:.200}") from error


def non_negative_least_squares(matrix: Array, target: Array, penalty: float = 0.0) -> Array:
    """The x without a negative element that brings matrix @ x closest to target: the best of all choices of columns
    whose own least squares have no negative element. For a few columns: each doubles the work.

    penalty: by how much one more column has to lower the sum of squares.
    """
    columns = matrix.shape[1]
    scale = np.linalg.norm(matrix, axis=0)
    scale[scale == 0] = 1
    scaled = matrix / scale
    best: Array = np.zeros(columns)
    least = float(target @ target)
    for size in range(1, columns + 1):
        for chosen in combinations(range(columns), size):
            some = scaled[:, chosen]
            x = np.linalg.lstsq(some, target)[0]
            if (x < 0).any():
                continue
            rest = target - some @ x
            squares = float(rest @ rest) + size * penalty
            if squares < least * (1 - 1e-9):
                least = squares
                best = np.zeros(columns)
                best[list(chosen)] = x / scale[list(chosen)]
    return best
