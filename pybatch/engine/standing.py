"""How a request stands among others."""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

BACKGROUND = 1 << 30
"""The priority from which on work is background work: rows of jobs that run beside interactive requests."""


def _is(kind: type, value: Any) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """Says when a request runs; its answer never depends on it. A bad value raises ValueError.

    priority: lower ones run first. user: in whose name; users of one priority are served fairly, by tokens.
    ttft_target: seconds from arrival in which the first token is wanted. tpot_target: seconds from a token to the next.
    """

    priority: int = 0
    user: str | None = None
    ttft_target: float | None = None
    tpot_target: float | None = None

    def __post_init__(self) -> None:
        if not _is(Integral, self.priority):
            raise ValueError(f"priority: expected an integer, got {self.priority!r:.80}")
        if not isinstance(self.user, str | None):
            raise ValueError(f"user: expected text or None, got {self.user!r:.80}")
        for name in ("ttft_target", "tpot_target"):
            target = getattr(self, name)
            if target is not None and not (_is(Real, target) and 0 <= target < math.inf):
                raise ValueError(f"{name}: expected a number of seconds, at least 0, or None, got {target!r:.80}")

    @property
    def background(self) -> bool:
        return self.priority >= BACKGROUND


ORDINARY = Standing()
