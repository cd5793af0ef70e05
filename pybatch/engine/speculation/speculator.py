"""Adds drafts to the chunks of a step: as many as are worth their time."""

from __future__ import annotations

import time
from collections.abc import Sequence as Tokens
from dataclasses import dataclass
from weakref import WeakKeyDictionary

from pybatch.engine.scheduling.scheduler import Scheduler
from pybatch.engine.scheduling.sequence import Sequence
from pybatch.engine.scheduling.step import Chunk, num_decodes
from pybatch.engine.speculation.acceptance import Acceptance
from pybatch.engine.speculation.proposer import Proposer
from pybatch.engine.speculation.step_times import StepTimes

_DECAY = 0.9  # with every draft token seen: text that copies soon goes on to some that does not
_DECAY_OF_ALL = 0.99
_SMALL = 0.005  # of a step's time: looking for drafts costs nothing then
_LONGEST_REST, _LONGEST_COSTLY_REST = 15, 63  # steps


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
    right. Else it takes all. What it takes changes no output, so that it may go by the clock. costly: drafts take time
    to make, so that it asks for no more than it takes, as many for each sequence.
    """

    def __init__(self, proposer: Proposer, *, most: int, max_tokens: int, adaptive: bool, costly: bool = False) -> None:
        self._proposer = proposer
        self._most = most
        self._max_tokens = max_tokens
        self._adaptive = adaptive
        self._costly = costly
        self._times = StepTimes()
        self._draft_times = StepTimes()  # by the numbers of sequences and drafts, of a costly proposer
        self._all = Acceptance(0.5, decay=_DECAY_OF_ALL)  # of every sequence
        self._known: WeakKeyDictionary[Sequence, _Guess] = WeakKeyDictionary()
        self._guesses: list[tuple[Sequence, _Guess]] = []  # of this step
        self._step: tuple[int, int] | None = None  # its sequences and tokens, if all decode
        self._looked = self._trying = False  # for drafts in this step; though they would not pay as far as is known
        self._seconds = 0.0  # that finding this step's drafts took
        self._rest = self._rests = 0  # steps without a look for drafts: to come, and the last time

    def draft(self, chunks: list[Chunk], scheduler: Scheduler) -> None:
        """Drafts take what a step's prompts leave of its tokens, and blocks that are free."""
        decodes = num_decodes(chunks)
        tokens = sum([chunk.num_tokens for chunk in chunks])
        self._guesses.clear()
        self._looked, self._trying, self._seconds = False, False, 0.0
        if self._rest:
            self._rest -= 1
        elif tokens < self._max_tokens and (drafting := [chunk for chunk in chunks[:decodes] if _wants_drafts(chunk)]):
            self._looked = True
            tokens += self._add(drafting, decodes, tokens, scheduler)
        self._step = (decodes, tokens) if decodes == len(chunks) else None

    def learn(self, seconds: float) -> None:
        """To be called when the step's tokens are in their sequences. seconds: that computing them took."""
        if self._step is not None:
            sequences, tokens = self._step
            self._times.observe(sequences, tokens, seconds)
            if tokens > sequences and not self._trying:
                self._rests = 0
            elif self._looked and self._adaptive and (self._costly or self._seconds > _SMALL * seconds):
                self._rest = self._rests = min(
                    2 * self._rests + 1, _LONGEST_COSTLY_REST if self._costly else _LONGEST_REST
                )
        for sequence, guess in self._guesses:
            right = 0
            came = sequence.tokens[guess.length : guess.length + len(guess.drafts)]
            while right < len(came) and came[right] == guess.drafts[right]:
                right += 1
            for acceptance in (guess.acceptance, self._all):
                acceptance.observe(right, wrong=right < len(came))

    def _add(self, drafting: list[Chunk], decodes: int, tokens: int, scheduler: Scheduler) -> int:
        """Returns the number of drafts."""
        sequences = [chunk.sequence for chunk in drafting]
        for sequence in sequences:
            guess = self._known.get(sequence)
            if guess is None:
                guess = self._known[sequence] = _Guess(Acceptance(self._all.share, decay=_DECAY))
            self._guesses.append((sequence, guess))
        depth = self._depth(decodes, tokens) if self._costly and self._adaptive else self._most
        begin = time.perf_counter()
        counts = [min(depth, each.request.max_total_tokens - len(each.tokens) - 1) for each in sequences]
        found = self._proposer.propose(sequences, counts) if depth else [()] * len(sequences)
        self._seconds = time.perf_counter() - begin
        for (sequence, guess), drafts in zip(self._guesses, found, strict=True):
            guess.drafts, guess.length = drafts, len(sequence.tokens)
        made = sum(map(len, found))
        if self._costly and made:
            self._draft_times.observe(len(sequences), made, self._seconds)
        if self._adaptive and not self._costly:
            counts = self._worthwhile(decodes, tokens)
        left = self._max_tokens - tokens
        for chunk, drafts, count in zip(drafting, found, counts, strict=True):
            if drafts and count and left:
                scheduler.add_drafts(chunk, drafts[: min(count, left)])
                left -= len(chunk.drafts)
        return self._max_tokens - tokens - left

    def _depth(self, decodes: int, tokens: int) -> int:
        """How many drafts of each sequence bring most tokens a second, where making them takes time too. After a rest
        one is tried in any case, lest it be unknown for ever how many would be right."""
        line, count = self._times.line(decodes), len(self._guesses)
        if line is None:
            return 0
        making = self._draft_times.line(count)
        shares = [guess.acceptance.share for _, guess in self._guesses]
        gains, expected = [1.0] * count, float(decodes)
        best, depth = expected / line.seconds(tokens), 0
        for length in range(1, min(self._most, (self._max_tokens - tokens) // count) + 1):
            gains = [gain * share for gain, share in zip(gains, shares, strict=True)]
            expected += sum(gains)
            drafts = length * count
            seconds = line.seconds(tokens) + line.least_per_token * drafts + (making.seconds(drafts) if making else 0.0)
            if expected > best * seconds:
                best, depth = expected / seconds, length
        self._trying = depth == 0 and self._rests > 0
        return 1 if self._trying else depth

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
        for gain, index in sorted(gains, reverse=True)[: min(self._max_tokens - tokens, line.most_more(tokens))]:
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
