"""How much a key may ask for."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass

Clock = Callable[[], float]
MINUTE = 60.0


@dataclass(frozen=True)
class Limits:
    """None: no limit."""

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    max_concurrent_requests: int | None = None

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise ValueError(f"{name}: expected an integer of at least 1, got {value!r:.80}")


class Bucket:
    """A token bucket: holds a minute's amount, from which it starts, and fills evenly. Of any thread.

    clock: in seconds, never backwards.
    """

    def __init__(self, per_minute: int, clock: Clock = time.monotonic) -> None:
        self.per_minute, self._clock = per_minute, clock
        self._level, self._at = float(per_minute), clock()
        self._lock = threading.Lock()

    def charge(self, amount: int) -> None:
        """Takes it whether it is there or not: what is overdrawn has to fill again first."""
        with self._lock:
            self._level, self._at = self._now()
            self._level -= amount

    @property
    def remaining(self) -> int:
        return max(0, math.floor(self._now()[0] + 1e-9))

    @property
    def wait(self) -> float:
        """Seconds until there is something to take."""
        return max(0.0, (1 - self._now()[0]) * MINUTE / self.per_minute)

    @property
    def reset(self) -> float:
        """Seconds until it is full."""
        return (self.per_minute - self._now()[0]) * MINUTE / self.per_minute

    def _now(self) -> tuple[float, float]:
        now = self._clock()
        return min(self.per_minute, self._level + (now - self._at) * self.per_minute / MINUTE), now


class Account:
    """What one key has used, or all requests together. name: of the key. user: in whose name its requests run; None:
    whom each says."""

    def __init__(self, name: str, limits: Limits, clock: Clock = time.monotonic, *, user: str | None = None) -> None:
        self.name, self.limits, self.user = name, limits, user
        self.running = 0  # requests
        self.requests = None if limits.requests_per_minute is None else Bucket(limits.requests_per_minute, clock)
        self.tokens = None if limits.tokens_per_minute is None else Bucket(limits.tokens_per_minute, clock)

    def charge_tokens(self, amount: int) -> None:
        if self.tokens is not None:
            self.tokens.charge(amount)


UNLIMITED = Account("unlimited", Limits())

payer: ContextVar[Account] = ContextVar("payer", default=UNLIMITED)
"""The account that is charged for what the current task asks of the engine."""
