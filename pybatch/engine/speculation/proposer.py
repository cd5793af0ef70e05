"""What makes drafts."""

from __future__ import annotations

from collections.abc import Sequence as Tokens
from typing import Protocol

from pybatch.engine.scheduling.sequence import Sequence


class Proposer(Protocol):
    """Must not depend on anything but the sequences for which tokens it gives, lest it be wrong: whatever it gives, the
    output is the same.

    has_read: whether the last call took time for prompts too, which the next ones will not take.
    """

    has_read: bool

    def propose(self, sequences: list[Sequence], counts: list[int]) -> list[Tokens[int]]:
        """For each sequence, at most `count` tokens that may come next."""
