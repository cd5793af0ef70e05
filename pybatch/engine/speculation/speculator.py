"""Adds drafts to the chunks of a step: as many as are worth their time."""

from __future__ import annotations

import time
from collections.abc import Sequence as Tokens
from dataclasses import dataclass
from weakref import WeakKeyDictionary

from pybatch.engine.scheduling.draft_blocks import DraftBlocks
from pybatch.engine.scheduling.sequence import Sequence
from pybatch.engine.scheduling.step import Chunk, num_decodes
from pybatch.engine.speculation.acceptance import Acceptance
from pybatch.engine.speculation.allowance import Allowance
from pybatch.engine.speculation.proposer import Proposer
from pybatch.engine.speculation.step_times import StepLine, StepTimes

_DECAY = 0.95  # with every draft token seen: text that copies soon goes on to some that does not
_DECAY_OF_ALL = 0.99
_ALLOWANCE = 0.01  # of the time of steps, for looks and trials of which it is not known that they pay
_MARGIN = 1.15  # by which a draft must be worth more than it takes, as neither is known exactly
_FIRST_TRIAL = 4  # sequences, of drafts that take time to make
_HOPED_GAIN = 1.1  # for which such a trial is made
_LONGEST_REST = 63  # steps from one trial that did not pay to the next
_FEWEST_READ = 64  # tokens of a step with prompts that tells what a token takes at most


@dataclass(slots=True)
class _Guess:
    """A sequence's drafts when it had `length` tokens, whether or not they were taken into the step: the tokens that
    come tell of both alike. found: how often there are any."""

    acceptance: Acceptance
    found: Acceptance
    drafts: Tokens[int] = ()
    length: int = 0

    def value(self, token: float, cost: float) -> float:
        """What a look for drafts brings, in seconds, where a token is worth `token` seconds and costs `cost`."""
        return self.found.share * (self.acceptance.share * token - cost)


class Speculator:
    """Drafts for the sequences that decode and want them.

    most: drafts of a sequence in a step. max_tokens: of a step. adaptive: takes drafts while the tokens that they are
    expected to bring come faster than the step's others, by what steps took and how many of each sequence's drafts were
    right; what it does to find that out takes a hundredth of the time in the long run. Else it takes all. What it takes
    changes no output, so that it may go by the clock. costly: drafts take time to make, so that it asks for no more
    than it takes, as many for each sequence.
    """

    def __init__(self, proposer: Proposer, *, most: int, max_tokens: int, adaptive: bool, costly: bool = False) -> None:
        self._proposer = proposer
        self._most = most
        self._max_tokens = max_tokens
        self._adaptive = adaptive
        self._costly = costly
        self._times = StepTimes()
        self._draft_times = StepTimes()  # by the numbers of sequences and drafts, of a costly proposer
        self._token_seconds = float("inf")  # at most, as steps that read prompts told
        self._allowance = Allowance(_ALLOWANCE)
        self._look_seconds = 0.0  # of one sequence, lately
        self._turn = 0
        self._all = Acceptance(0.5, decay=_DECAY_OF_ALL)  # of every sequence
        self._all_found = Acceptance(0.5, decay=_DECAY_OF_ALL)
        self._known: WeakKeyDictionary[Sequence, _Guess] = WeakKeyDictionary()
        self._guesses: list[tuple[Sequence, _Guess]] = []  # of this step
        self._step: tuple[int, int, int] | None = None  # its sequences that decode, other tokens, and drafts
        self._trying = False  # drafts that would not pay as far as is known
        self._seconds = 0.0  # that making this step's drafts took, of a costly proposer
        self._rest = self._rests = 0  # steps without a trial: to come, and the last time

    def draft(self, chunks: list[Chunk], blocks: DraftBlocks) -> None:
        """Drafts take what a step's prompts leave of its tokens, and blocks that are free."""
        decodes = num_decodes(chunks)
        tokens = sum([chunk.num_tokens for chunk in chunks])
        self._guesses.clear()
        self._trying, self._seconds = False, 0.0
        self._rest = max(0, self._rest - 1)
        drafts = 0
        if tokens < self._max_tokens and (drafting := [chunk for chunk in chunks[:decodes] if _wants_drafts(chunk)]):
            for chunk, wanted in self._wanted(drafting, decodes, tokens):
                blocks.add(chunk, wanted[: self._max_tokens - tokens - drafts])
                drafts += len(chunk.drafts)
                if tokens + drafts == self._max_tokens:
                    break
        self._step = decodes, tokens - decodes, drafts

    def learn(self, seconds: float) -> None:
        """To be called when the step's tokens are in their sequences. seconds: that computing them took."""
        came = self._see_what_came()
        if self._step is None:
            return
        sequences, read, drafts = self._step
        self._step = None
        self._allowance.earn(seconds)
        if read:
            if read >= _FEWEST_READ:
                self._token_seconds = min(self._token_seconds, seconds / (read + sequences + drafts))
            return
        line = self._times.line(sequences)
        if line is not None and self._trying:
            plain = line.seconds(sequences)
            loss = self._seconds + seconds - plain * (1 + came / sequences)
            if loss > 0:
                self._allowance.spend(loss)
                self._rest = self._rests = min(2 * self._rests + 1, _LONGEST_REST)
        elif drafts:
            self._rests = 0
        self._times.observe(sequences, sequences + drafts, seconds, self._token_seconds)

    def _see_what_came(self) -> int:
        """Returns how many drafts that were right brought a token."""
        brought = 0
        for sequence, guess in self._guesses:
            right = 0
            came = sequence.tokens[guess.length : guess.length + len(guess.drafts)]
            while right < len(came) and came[right] == guess.drafts[right]:
                right += 1
            brought += max(0, len(sequence.tokens) - guess.length - 1)
            for acceptance in (guess.acceptance, self._all):
                acceptance.observe(right, wrong=right < len(came))
        return brought

    def _wanted(self, drafting: list[Chunk], decodes: int, tokens: int) -> list[tuple[Chunk, Tokens[int]]]:
        """The drafts to take, best first."""
        if not self._adaptive:
            self._ask(drafting, self._most)
            return [(chunk, guess.drafts) for chunk, (_, guess) in zip(drafting, self._guesses, strict=True)]
        line = self._times.line(decodes)
        if line is None:  # the first step of its kind tells what one takes
            return []
        if self._costly:
            return self._made(drafting, line, decodes, tokens)
        return self._looked_up(drafting, line, decodes, tokens)

    def _ask(self, drafting: list[Chunk], most: int) -> float:
        """Has the drafts of these made. Returns the seconds that it took."""
        sequences = [chunk.sequence for chunk in drafting]
        counts = [min(most, each.request.max_total_tokens - len(each.tokens) - 1) for each in sequences]
        begin = time.perf_counter()
        found = self._proposer.propose(sequences, counts)
        seconds = time.perf_counter() - begin
        for sequence, drafts in zip(sequences, found, strict=True):
            guess = self._guess(sequence)
            guess.drafts, guess.length = drafts, len(sequence.tokens)
            self._guesses.append((sequence, guess))
        return seconds

    @property
    def _may_try(self) -> bool:
        return self._rest == 0 and self._allowance.is_left

    def _guess(self, sequence: Sequence) -> _Guess:
        guess = self._known.get(sequence)
        if guess is None:
            acceptance = Acceptance(self._all.share, decay=_DECAY)
            guess = self._known[sequence] = _Guess(acceptance, Acceptance(self._all_found.share, decay=_DECAY))
        return guess

    # ---- drafts that are looked up ----

    def _looked_up(
        self, drafting: list[Chunk], line: StepLine, decodes: int, tokens: int
    ) -> list[tuple[Chunk, Tokens[int]]]:
        """Drafts of the sequences for which a look is worth its time, and of a few others, in turn, to know of them."""
        token = line.seconds(tokens) / decodes
        chosen: list[Chunk] = []
        others: list[Chunk] = []
        for chunk in drafting:
            pays = self._guess(chunk.sequence).value(token, _MARGIN * line.per_token) > self._look_seconds
            (chosen if pays else others).append(chunk)
        tries = 0
        if others and self._allowance.is_left:
            tries = min(len(others), 1 + int(self._allowance.seconds / max(self._look_seconds, 1e-6)))
            self._turn %= len(others)
            chosen += (others + others)[self._turn : self._turn + tries]
            self._turn += tries
        if not chosen:
            return []
        seconds = self._ask(chosen, self._most) / len(chosen)
        self._look_seconds += 0.1 * (seconds - self._look_seconds)
        self._allowance.spend(seconds * tries)
        for _, guess in self._guesses:
            for found in (guess.found, self._all_found):
                found.observe(int(bool(guess.drafts)), wrong=not guess.drafts)
        return self._worthwhile(chosen, line, decodes, tokens)

    def _worthwhile(
        self, chosen: list[Chunk], line: StepLine, decodes: int, tokens: int
    ) -> list[tuple[Chunk, Tokens[int]]]:
        """As many of each sequence's drafts as pay. Every one of them adds its probability of being right, with all
        before it, to the tokens that the step brings, and the same time to the step; the best are taken first.

        Where none pays, but some would if a token took as little as it well may, one sequence's are tried.
        """
        cost = _MARGIN * line.per_token
        gains = self._gains(cost, line, decodes, tokens)
        if (
            not gains
            and self._allowance.is_left
            and (tries := self._gains(line.least_per_token, line, decodes, tokens))
        ):
            best = max(tries)[1]
            gains, cost, self._trying = [each for each in tries if each[1] == best], line.least_per_token, True
        counts = [0] * len(chosen)
        seconds, expected = line.seconds(tokens), float(decodes)
        for gain, index in sorted(gains, reverse=True)[: line.most_more(tokens)]:
            if gain * seconds <= cost * expected:
                break
            counts[index] += 1
            seconds += cost
            expected += gain
        wanted = [
            (counts[index], chunk, guess)
            for index, (chunk, (_, guess)) in enumerate(zip(chosen, self._guesses, strict=True))
        ]
        return [(chunk, guess.drafts[:count]) for count, chunk, guess in wanted if count]

    def _gains(self, cost: float, line: StepLine, decodes: int, tokens: int) -> list[tuple[float, int]]:
        """The tokens that each draft may bring, if that pays beside no other draft, and whose it is."""
        least = cost * decodes / line.seconds(tokens)
        gains = []
        for index, (_, guess) in enumerate(self._guesses):
            share = gain = guess.acceptance.cautious_share if guess.drafts else 0.0
            for _ in guess.drafts:
                if gain <= least:
                    break
                gains.append((gain, index))
                gain *= share
        return gains

    # ---- drafts that take time to make ----

    def _made(
        self, drafting: list[Chunk], line: StepLine, decodes: int, tokens: int
    ) -> list[tuple[Chunk, Tokens[int]]]:
        """Drafts of all, as deep as pays best; or of some where that is not known, and might well pay. Of
        few first and then of twice as many each time, where it is not known either what making them takes."""
        making = self._draft_times.line(len(drafting))
        depth = 0
        if making is not None:
            shares = [self._guess(chunk.sequence).acceptance.share for chunk in drafting]
            depth = self._depth(shares, _MARGIN * line.per_token, line, making, decodes, tokens)
        if depth == 0:
            known = self._draft_times.nearest(len(drafting))
            hoped = [self._all.hopeful_share] * len(drafting)
            if not self._may_try or (
                known
                and not self._depth(hoped, line.least_per_token, line, known, decodes, tokens, least_gain=_HOPED_GAIN)
            ):
                return []
            count = 1 if making else max(_FIRST_TRIAL, 2 * self._draft_times.most_sequences)
            drafting = drafting[:count]  # the first, whose prompts may have been read in a trial before
            depth, self._trying = 1, True
        seconds = self._ask(drafting, depth)
        made = sum(len(guess.drafts) for _, guess in self._guesses)
        if not self._proposer.has_read:
            self._seconds = seconds
            if made:
                self._draft_times.observe(len(drafting), made, seconds)
        elif making:  # else the prompts are read for later steps
            self._seconds = seconds
        return [(chunk, guess.drafts) for chunk, (_, guess) in zip(drafting, self._guesses, strict=True)]

    def _depth(
        self,
        shares: list[float],
        cost: float,
        line: StepLine,
        making: StepLine,
        decodes: int,
        tokens: int,
        *,
        least_gain: float = 1.0,
    ) -> int:
        """How many drafts of each sequence bring most tokens a second; 0 where that is less than least_gain times as
        many as without."""
        gains = [1.0] * len(shares)
        expected = float(decodes)
        best, depth = least_gain * expected / line.seconds(tokens), 0
        for length in range(1, min(self._most, (self._max_tokens - tokens) // len(shares)) + 1):
            gains = [gain * share for gain, share in zip(gains, shares, strict=True)]
            expected += sum(gains)
            drafts = length * len(shares)
            seconds = line.seconds(tokens) + cost * drafts + making.seconds(drafts)
            if expected > best * seconds:
                best, depth = expected / seconds, length
        return depth


def _wants_drafts(chunk: Chunk) -> bool:
    """At the last token there is nothing to draft, and a beam's next token depends on the other beams."""
    request = chunk.sequence.request
    return (
        request.params.speculate and request.beams is None and request.max_total_tokens - len(chunk.sequence.tokens) > 1
    )
