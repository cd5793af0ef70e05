"""How many of a prompt's tokens a step may compute, so that targets are met where that is possible."""

from __future__ import annotations

import math
from collections.abc import Iterable

from pybatch.engine.learned_costs import LearnedCosts
from pybatch.engine.scheduling.sequence import Sequence
from pybatch.engine.scheduling.step import Step

_MARGIN = 0.9  # of a target, since steps take more or less than expected
_LEAST_SHARE = 0.2  # of a step's time that prompts get, whatever the targets of those that decode
_OTHERS = 8  # prompts that are in danger leave others one part in so many of a step's tokens


class TargetBudget:
    """Sizes the prompts' part of a step, by what steps have taken: a cost a step, a sequence that decodes, a prompt's
    token and a pair of such a token and one that it attends to.

    A step with a sequence that decodes and has a TPOT target gets no longer than that by prompts of its priority or a
    worse one, but for a fifth of its time, which prompts have in any case. A target that the step would miss without
    any prompt binds nobody. A prompt is in danger if it would miss its TTFT target beside others, and can still meet
    it: it is before other prompts of its priority, leaves these an eighth of the step, and may take what it needs,
    though a TPOT target is missed. What cannot be met any more is like what has no target. So nobody waits for ever for
    another's target.

    max_tokens: of a step. As long as no request had a target nothing is measured, and nothing costs time.
    """

    def __init__(self, max_tokens: int) -> None:
        self._max_tokens = max_tokens
        self._costs: LearnedCosts | None = None
        self._wanted = False
        self._now = 0.0
        self._decodes = 0
        self._decode_seconds = 0.0  # of the step without prompts
        self._targets: list[tuple[int, float]] = []  # priorities and TPOT targets of those that decode
        self._limits: dict[int, float] = {}  # seconds of the step, by the priorities of prompts

    def add(self, sequence: Sequence) -> None:
        """It has come to the queue."""
        standing = sequence.request.standing
        self._wanted = self._wanted or standing.ttft_target is not None or standing.tpot_target is not None

    @property
    def known(self) -> bool:
        return self._wanted and self._costs is not None

    def begin(self, decodes: int, paced: Iterable[Sequence], now: float) -> None:
        """A step is to be filled. decodes: the number of sequences that decode in it. paced: those with a target."""
        if self._costs is None or not self._wanted:
            return
        self._now, self._decodes = now, decodes
        self._decode_seconds = self._seconds(0, 0)
        self._limits.clear()
        self._targets = [
            (each.priority, target)
            for each in paced
            if (target := each.request.tpot_target) is not None and target > self._decode_seconds
        ]

    def tokens(self, sequence: Sequence, step: Step, left: int) -> int:
        """How many of `left` the sequence's chunk may have."""
        if not self.known or left <= 0:
            return left
        limit = self._limit(sequence.priority)
        if limit == math.inf:
            return left
        most = self._tokens_within(limit, sequence, step)
        if self.in_danger(sequence):
            most = max(most, self._tokens_needed(sequence))
        return min(left, max(most, int(step.tokens == 0)))

    def in_danger(self, sequence: Sequence) -> bool:
        """Whether a prompt needs to be before others for its TTFT target, and can meet it then."""
        if not self.known or not sequence.urgent or sequence.num_output:
            return False
        slack = sequence.deadline - self._now
        alone, full = self._prompt_seconds(sequence, self._room), self._full_step(sequence)
        if alone > slack:
            return False
        limit = self._limit(sequence.priority)
        size = self._room if limit == math.inf else max(1, self._tokens_within(limit, sequence, Step()))
        return _MARGIN * slack < 2 * self._prompt_seconds(sequence, size) + full

    @property
    def kept_for_others(self) -> int:
        """Tokens of a step for prompts that are not in danger, beside those that are."""
        return self._room // _OTHERS if self.known else 0

    def observe(self, decodes: int, step: Step, seconds: float) -> None:
        """A step has taken so long. decodes: its tokens that were no prompt's."""
        tokens = decodes + step.tokens
        if not self._wanted or not tokens:
            return
        if self._costs is None:
            each = seconds / tokens
            self._costs = LearnedCosts(
                (0.3 * seconds, 0.6 * each, 0.6 * each, 0.0), (0.5 * seconds, each, each, each / 1000)
            )
        self._costs.observe((1, decodes, step.tokens, step.pairs), seconds)

    @property
    def _room(self) -> int:
        """For prompts, in a step."""
        return max(1, self._max_tokens - self._decodes)

    def _limit(self, priority: int) -> float:
        if not self._targets:
            return math.inf
        found = self._limits.get(priority)
        if found is None:
            targets = [target for of, target in self._targets if of <= priority]
            least = self._decode_seconds / (1 - _LEAST_SHARE)
            found = self._limits[priority] = max(_MARGIN * min(targets), least) if targets else math.inf
        return found

    def _seconds(self, tokens: float, pairs: float) -> float:
        assert self._costs is not None
        step, decode, token, pair = self._costs.costs
        return max(step + decode * self._decodes, 0.0) + max(token, 0.0) * tokens + max(pair, 0.0) * pairs

    def _tokens_within(self, limit: float, sequence: Sequence, step: Step) -> int:
        """The most that the step may have of the sequence's tokens, beside what it has, without being longer."""
        assert self._costs is not None
        token, pair = (max(cost, 0.0) for cost in self._costs.costs[2:])
        rest = limit - self._seconds(step.tokens, step.pairs)
        if rest <= 0:
            return 0
        linear = token + pair * (sequence.num_cached + 0.5)  # rest = linear * n + pair / 2 * n**2
        root = linear + math.sqrt(linear**2 + 2 * pair * rest)
        return self._max_tokens if root <= 0 else int(min(2 * rest / root, self._max_tokens))

    def _prompt_seconds(self, sequence: Sequence, size: int) -> float:
        """What the rest of a prompt takes, by chunks of a size."""
        pending = sequence.num_pending
        pairs = pending * (sequence.num_cached + pending / 2)
        chunks = math.ceil(pending / size)
        return self._seconds(pending, pairs) + (chunks - 1) * self._seconds(0, 0)

    def _full_step(self, sequence: Sequence) -> float:
        """That others may have before it."""
        return self._seconds(self._room, self._room * (self._room / 2))

    def _tokens_needed(self, sequence: Sequence) -> int:
        """The size of chunks, by which a prompt meets its target with a margin."""
        pending = sequence.num_pending
        spare = _MARGIN * (sequence.deadline - self._now)
        spare -= self._prompt_seconds(sequence, pending) - self._seconds(0, 0)
        chunks = math.floor(spare / max(self._seconds(0, 0), 1e-9))
        return self._max_tokens if chunks < 1 else math.ceil(pending / chunks)
