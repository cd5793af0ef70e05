"""Beam search: which continuations of a request's beams go on, and which finished ones are its answers.

The rules are those of transformers' generate(num_beams=...), so that both give the same answers:

- Of all continuations of all beams by one token, the best by the sum of their log-probabilities count. Equal ones come
  in the order of their beams, best first, and within a beam by token id.
- The best `width` that do not end are the next beams. Those that end are hypotheses, if they are among the best `width`
  of all; the best `width` hypotheses by score are kept. The score is the sum divided by length ** length_penalty, the
  length being the output's tokens with the one that ended it.
- With `width` hypotheses the search is over if early_stopping is True; if it is False, once the best beam's score as it
  is now is no better than the worst hypothesis's; if it is "never", once the best score that this beam could still
  come to is not, which for a positive length_penalty is that of its sum at the greatest length.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, Literal, NamedTuple, TypeVar

from pybatch.engine.outputs import TokenLogprobs, logprobs_entry

EarlyStopping = bool | Literal["never"]

H = TypeVar("H")


@dataclass(frozen=True, slots=True)
class Candidates:
    """A beam's likeliest next tokens and their log-probabilities, best first."""

    tokens: list[int]
    logprobs: list[float]

    def entry(self, place: int, count: int, decode: Callable[[int], str | None]) -> TokenLogprobs:
        """What is reported of the one at `place`: it, and the `count` likeliest."""
        token, logprob = self.tokens[place], self.logprobs[place]
        return logprobs_entry(decode, token, logprob, place + 1, self.tokens[:count], self.logprobs[:count])


class Continuation(NamedTuple):
    """Of a beam, by its index, by the candidate at `place`. total: the sum of its log-probabilities."""

    beam: int
    place: int
    token: int
    total: float


def num_considered(width: int, num_stop_ids: int) -> int:
    """How many of a beam's likeliest tokens a search looks at: where none ends it but stop tokens, `width` go on. It
    is the search's own, however many the sampler has found for others beside it or to be reported."""
    return max(2 * width, width + num_stop_ids)


def ranked(totals: Sequence[float], candidates: Sequence[Candidates], most: int) -> Iterator[Continuation]:
    """The best `most` candidates of each beam, all in one order, best first, but those that cannot be: of
    log-probability -inf.

    totals: of each beam the sum of its log-probabilities.
    """

    def continuations(beam: int) -> Iterator[Continuation]:
        tokens, logprobs = candidates[beam].tokens[:most], candidates[beam].logprobs[:most]
        for place, (token, logprob) in enumerate(zip(tokens, logprobs, strict=True)):
            if logprob == -math.inf:
                return
            yield Continuation(beam, place, token, totals[beam] + logprob)

    return heapq.merge(*map(continuations, range(len(totals))), key=lambda each: -each.total)


class BeamSearch(Generic[H]):
    """One request's search: its settings, and the hypotheses so far.

    max_length: the most tokens of output.
    """

    def __init__(self, width: int, *, length_penalty: float, early_stopping: EarlyStopping, max_length: int) -> None:
        self.width = width
        self._length_penalty = length_penalty
        self._early_stopping = early_stopping
        self._max_length = max_length
        self._finished: list[tuple[float, H]] = []  # best first

    @property
    def hypotheses(self) -> list[H]:
        """The best of those that have ended, best first: `width` at most."""
        return [hypothesis for _, hypothesis in self._finished]

    def finish(self, hypothesis: H, total: float, length: int) -> None:
        """Takes one that has ended, if it is better than the worst of `width` others."""
        self._finished.append((self._score(total, length), hypothesis))
        self._finished.sort(key=lambda each: -each[0])  # stable: of equal ones the earlier is better
        del self._finished[self.width :]

    def is_over(self, best_total: float, length: int) -> bool:
        """Whether beams of `length` tokens, of which best_total is the greatest, need not go on."""
        if len(self._finished) < self.width:
            return False
        if self._early_stopping is True:
            return True
        if self._early_stopping == "never" and self._length_penalty > 0:
            length = self._max_length
        return self._score(best_total, length) <= self._finished[-1][0]

    def _score(self, total: float, length: int) -> float:
        return total / float(length**self._length_penalty)
