"""How much may be spent on what may not pay."""

from __future__ import annotations


class Allowance:
    """A share of the time that passes. What was overdrawn is waited for, so that in the long run no more is spent."""

    __slots__ = ("_share", "seconds")

    def __init__(self, share: float) -> None:
        self._share = share
        self.seconds = 0.0

    @property
    def is_left(self) -> bool:
        return self.seconds >= 0

    def earn(self, seconds: float) -> None:
        """For time that passed. What is not spent is not saved up beyond one step's time."""
        self.seconds = min(self.seconds + self._share * seconds, seconds)

    def spend(self, seconds: float) -> None:
        self.seconds -= seconds
