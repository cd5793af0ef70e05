"""How many tokens an output will come to, learnt from those that have ended."""

from __future__ import annotations

from bisect import bisect_right, insort
from collections import deque

_KEPT = 256  # lengths of a class, the newest: what is asked changes
_FEW = 4  # longer outputs that must have ended before they tell of one that goes on
_QUANTILE = 0.7  # of the outputs that are longer than one is so far, which is taken for its length
_UNKNOWN = 512  # tokens that an output of a class of which none has ended is taken to come to


class LengthPredictor:
    """Of requests with the same max_tokens, which mostly ask alike: the lengths of outputs that have ended.

    An output's length is predicted as a quantile of those that are longer than it is now. Where too few are, it is
    taken to grow to twice its length, as lifetimes without a scale do (Lindy's law).
    """

    def __init__(self) -> None:
        self._classes: dict[int | None, tuple[deque[int], list[int]]] = {}  # the newest in order, and sorted

    def ended(self, max_tokens: int | None, length: int) -> None:
        newest, ordered = self._classes.setdefault(max_tokens, (deque(), []))
        if len(newest) == _KEPT:
            del ordered[bisect_right(ordered, newest.popleft()) - 1]
        newest.append(length)
        insort(ordered, length)

    def predict(self, max_tokens: int | None, so_far: int, most: int) -> int:
        """Of an output that has `so_far` tokens and can come to `most`: more than so_far, unless it has all."""
        _, ordered = self._classes.get(max_tokens, (None, ()))
        first = bisect_right(ordered, so_far)
        longer = len(ordered) - first
        if longer >= _FEW:
            return min(most, ordered[first + int(_QUANTILE * longer)])
        return min(most, max(2 * so_far, ordered[-1] if ordered else _UNKNOWN, so_far + 1))
