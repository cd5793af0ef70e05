"""Adds drafts to the chunks of a step: as many as are worth their time."""

from __future__ import annotations

import time
from collections.abc import Sequence as Tokens
from dataclasses import dataclass
from weakref import WeakKeyDictionary

from pybatch.engine.scheduling.scheduler import Chunk, Scheduler, num_decodes
from pybatch.engine.scheduling.sequence import Sequence
from pybatch.engine.speculation.acceptance import Acceptance
from pybatch.engine.speculation.proposer import Proposer
from pybatch.engine.speculation.step_times import StepTimes

_DECAY = 0.9  # with every draft token seen: text that copies soon goes on to some that does not
_DECAY_OF_ALL = 0.99
_SMALL = 0.005  # of a step's time: looking for drafts costs nothing then
_LONGEST_REST = 15  # steps


@dataclass(slots=True)
class _Guess:
    """A sequence's drafts when it had `length` tokens, whether or not they were taken into the step: the tokens that
    come tell of both alike."""

    acceptance: Acceptance
    drafts: Tokens[int] = ()
    length: int = 0


class Speculator:
    """Drafts for the sequences that decode and want them.

    most: drafts of a sequence in a step. max_tokens: of a step. adaptive: takes drafts while the tokens that they are
    expected to bring come faster than the step's others, by what steps took and how many of each sequence's drafts were
    right. Else it takes all. What it takes changes no output, so that it may go by the clock.
    """

    def __init__(self, proposer: Proposer, *, most: int, max_tokens: int, adaptive: bool) -> None:
        self._proposer = proposer
        self._most = most
        self._max_tokens = max_tokens
        self._adaptive = adaptive
        self._times = StepTimes()
        self._all = Acceptance(0.5, decay=_DECAY_OF_ALL)  # of every sequence
        self._known: WeakKeyDictionary[Sequence, _Guess] = WeakKeyDictionary()
        self._guesses: list[tuple[Sequence, _Guess]] = []  # of this step
        self._step: tuple[int, int] | None = None  # its sequences and tokens, if all decode
        self._seconds = 0.0  # that finding this step's drafts took
        self._rest = self._rests = 0  # steps without a look for drafts: to come, and the last time

    def draft(self, chunks: list[Chunk], scheduler: Scheduler) -> None:
        """Drafts take what a step's prompts leave of its tokens, and blocks that are free."""
        decodes = num_decodes(chunks)
        tokens = sum([chunk.num_tokens for chunk in chunks])
        self._guesses.clear()
        self._seconds = 0.0
        if self._rest:
            self._rest -= 1
        elif tokens < self._max_tokens:
            begin = time.perf_counter()
            tokens += self._add(chunks[:decodes], tokens, scheduler)
            self._seconds = time.perf_counter() - begin
        self._step = (decodes, tokens) if decodes == len(chunks) else None

    def learn(self, seconds: float) -> None:
        """To be called when the step's tokens are in their sequences. seconds: that computing them took."""
        if self._step is not None:
            self._times.observe(*self._step, seconds)
            if self._step[0] < self._step[1]:
                self._rests = 0
            elif self._adaptive and self._seconds > _SMALL * seconds:
                self._rest = self._rests = min(2 * self._rests + 1, _LONGEST_REST)
        for sequence, guess in self._guesses:
            right = 0
            came = sequence.tokens[guess.length : guess.length + len(guess.drafts)]
            while right < len(came) and came[right] == guess.drafts[right]:
                right += 1
            for acceptance in (guess.acceptance, self._all):
                acceptance.observe(right, wrong=right < len(came))

    def _add(self, decoding: list[Chunk], tokens: int, scheduler: Scheduler) -> int:
        """Returns the number of drafts."""
        drafting = [chunk for chunk in decoding if _wants_drafts(chunk)]
        sequences = [chunk.sequence for chunk in drafting]
        counts = [min(self._most, each.request.max_total_tokens - len(each.tokens) - 1) for each in sequences]
        found = self._proposer.propose(sequences, counts)
        for sequence, drafts in zip(sequences, found, strict=True):
            guess = self._known.get(sequence)
            if guess is None:
                guess = self._known[sequence] = _Guess(Acceptance(self._all.share, decay=_DECAY))
            guess.drafts, guess.length = drafts, len(sequence.tokens)
            self._guesses.append((sequence, guess))
        counts = self._worthwhile(len(decoding), tokens) if self._adaptive else [len(drafts) for drafts in found]
        left = self._max_tokens - tokens
        for chunk, drafts, count in zip(drafting, found, counts, strict=True):
            if count and left:
                scheduler.add_drafts(chunk, drafts[: min(count, left)])
                left -= len(chunk.drafts)
        return self._max_tokens - tokens - left

    def _worthwhile(self, decodes: int, tokens: int) -> list[int]:
        """How many of each guess's drafts to take. Every one of them adds its probability of being right, with all
        before it, to the tokens that the step brings, and the same time to the step; the best are taken first."""
        counts = [0] * len(self._guesses)
        line = self._times.line(decodes)
        if line is None:
            return counts
        cost, seconds, expected = line.least_per_token, line.seconds(tokens), float(decodes)
        gains = []
        for index, (_, guess) in enumerate(self._guesses):
            share = gain = guess.acceptance.share if guess.drafts else 0.0
            for _ in guess.drafts:
                if gain * seconds <= cost * expected:
                    break
                gains.append((gain, index))
                gain *= share
        for gain, index in sorted(gains, reverse=True)[: self._max_tokens - tokens]:
            if gain * seconds <= cost * expected:
                break
            counts[index] += 1
            seconds += cost
            expected += gain
        return counts


def _wants_drafts(chunk: Chunk) -> bool:
    """At the last token there is nothing to draft, and a beam's next token depends on the other beams."""
    request = chunk.sequence.request
    return (
        request.params.speculate and request.beams is None and request.max_total_tokens - len(chunk.sequence.tokens) > 1
    )
