"""How likely the next token of a draft is right."""

from __future__ import annotations

import math


class Acceptance:
    """The share of right tokens among those that had only right ones before them.

    prior: what is thought before the first is seen, as much as two tokens would say. decay: of what was seen before,
    with each token.
    """

    __slots__ = ("_decay", "_right", "_seen")

    def __init__(self, prior: float, *, decay: float) -> None:
        self._right, self._seen = 2 * prior, 2.0
        self._decay = decay

    @property
    def share(self) -> float:
        return self._right / self._seen

    @property
    def cautious_share(self) -> float:
        """Half a standard deviation below the share: of many that are looked at, those that seem best mostly seem so by
        chance."""
        return max(0.0, self.share - 0.5 * math.sqrt(self.share * (1 - self.share) / self._seen))

    @property
    def hopeful_share(self) -> float:
        """What the share may well be, as little as has been seen."""
        return min(1.0, self.share + 2 * math.sqrt((self.share * (1 - self.share) + 1 / self._seen) / self._seen))

    def observe(self, right: int, *, wrong: bool) -> None:
        """right: that many tokens in a row. wrong: and then one that was not."""
        for hit in (1,) * right + (0,) * wrong:
            self._right = self._decay * self._right + hit
            self._seen = self._decay * self._seen + 1
