"""The hidden states of a prompt's tokens, pooled as they come."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pybatch.engine.pooling_params import Pooling
from pybatch.model.pooling import CLS, LAST, MAX, MEAN, MEAN_SQRT, WEIGHTED_MEAN

Vector = NDArray[np.float32]
States = NDArray[np.float32]  # [tokens, width]


class Pooled:
    """Every token is added by itself, in order and in float64: so it changes no bit into which chunks they come.

    vector: what came of it at the end.
    """

    __slots__ = ("_first", "_last", "_most", "_sum", "_weighted", "count", "pooling", "vector")
    _first: Vector
    _last: Vector
    _most: Vector
    _sum: NDArray[np.float64]
    _weighted: NDArray[np.float64]

    def __init__(self, pooling: Pooling) -> None:
        self.pooling = pooling
        self.count = 0  # tokens so far
        self.vector: Vector | None = None

    def first_wanted(self, num_tokens: int) -> int:
        """The next token whose state is to be added, of so many."""
        return self.count if self.pooling.of_all_tokens else num_tokens - 1

    def add(self, states: States) -> None:
        """Those of the next tokens, which are copied."""
        if not self.count:
            self._first, self._most = states[0].copy(), states[0].copy()
            self._sum, self._weighted = np.zeros((2, states.shape[1]))
        if self.pooling.of_all_tokens:
            for state in states:
                self.count += 1
                np.maximum(self._most, state, out=self._most)
                self._sum += state
                self._weighted += state * np.float64(self.count)
        self._last = states[-1].copy()

    def result(self) -> Vector:
        """sentence-transformers' rules; of several methods one vector after another."""
        if not self.pooling.of_all_tokens:
            return self._last
        vectors: dict[str, NDArray[Any]] = {
            CLS: self._first,
            MAX: self._most,
            MEAN: self._sum / self.count,
            MEAN_SQRT: self._sum / np.sqrt(self.count),
            WEIGHTED_MEAN: self._weighted / (self.count * (self.count + 1) / 2),  # by position (Muennighoff 2022)
            LAST: self._last,
        }
        return np.concatenate([vectors[method] for method in self.pooling.methods]).astype(np.float32)
