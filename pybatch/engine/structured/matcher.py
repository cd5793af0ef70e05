"""How far sequences have come in their grammars, and which tokens these allow next."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pybatch.engine.structured.grammar import GrammarError, first_lines

if TYPE_CHECKING:
    from llguidance import LLExecutor, LLMatcher


class Matcher:
    """One sequence's place in a grammar. Each sequence has a copy of its own; not for two threads at a time."""

    __slots__ = ("state",)

    def __init__(self, state: LLMatcher) -> None:
        self.state = state

    def copy(self) -> Matcher:
        """At the same place: some 10 us."""
        return Matcher(self.state.deep_copy())

    def accept(self, tokens: Sequence[int]) -> None:
        """Goes on by tokens. Raises GrammarError if the grammar does not allow them, or they exceed its limits."""
        if not self.state.consume_tokens(list(tokens)):
            raise GrammarError(f"structured_outputs: {self.error}")

    def ends(self, token: int) -> bool:
        """Goes on by a token, as accept does. Returns whether nothing can follow there."""
        self.accept((token,))
        return self.ended

    def count_valid(self, tokens: Sequence[int]) -> int:
        """How many of the tokens the grammar allows, one after the other. Stays where it is."""
        return int(self.state.validate_tokens(list(tokens)))

    def rollback(self, count: int) -> None:
        """Takes the last `count` tokens back. Raises GrammarError if there are not so many."""
        if count and not self.state.rollback(count):
            raise GrammarError(f"structured_outputs: {self.error}")

    @property
    def ended(self) -> bool:
        """Whether nothing can follow but the end of the sequence."""
        return bool(self.state.is_stopped()) and not self.state.is_error()

    @property
    def error(self) -> str:
        """Why it cannot be followed any further; empty if it can."""
        return first_lines(self.state.get_error())


def fill_masks(
    masks: Tensor, places: Sequence[tuple[Matcher, int]], drafts: Sequence[Sequence[int]] | None = None
) -> None:
    """Writes which tokens each matcher allows next into its row of masks, as ops.sample reads them.

    masks: [rows, ceil(vocab / 32)] int32, contiguous, on the CPU. places: matchers and their rows. drafts: of each
    matcher tokens that may follow: it gets as many further rows, each for the place after one more of them, and stays
    where it is. A matcher that cannot be followed any further gets a row without tokens; so do draft tokens from the
    first that is not allowed on.
    """
    rows, words = masks.shape
    if drafts is not None:
        for (_, row), draft in zip(places, drafts, strict=True):
            masks[row + 1 : row + 1 + len(draft)] = 0
        tasks = [(each.state, row, list(draft)) for (each, row), draft in zip(places, drafts, strict=True)]
        _executor().unsafe_compute_mask_ptr_with_draft_token(tasks, masks.data_ptr(), words * 4, rows)
    elif len(places) == 1:
        matcher, row = places[0]
        matcher.state.unsafe_compute_mask_ptr(masks[row].data_ptr(), words * 4)
    else:
        states = [(matcher.state, row) for matcher, row in places]
        _executor().unsafe_compute_mask_ptr(states, masks.data_ptr(), words * 4, rows)
    for matcher, row in places:
        if matcher.state.is_error():
            masks[row] = 0


@lru_cache(maxsize=1)
def _executor() -> LLExecutor:
    from llguidance import LLExecutor

    return LLExecutor(torch.get_num_threads())
