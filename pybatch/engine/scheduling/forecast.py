"""How full the KV pool will become with the sequences that run, and whether another one fits beside them."""

from __future__ import annotations

from bisect import bisect_left
from itertools import accumulate
from operator import add
from typing import NamedTuple

from pybatch.engine.scheduling.length_prediction import LengthPredictor
from pybatch.engine.scheduling.sequence import Sequence


class Period:
    """Sequences that are to end in one period of steps. growth, offset: at step t they hold growth * t + offset tokens
    together."""

    __slots__ = ("growth", "offset", "sequences")

    def __init__(self) -> None:
        self.sequences: dict[Sequence, tuple[int, int]] = {}
        self.growth = 0
        self.offset = 0


class Peaks(NamedTuple):
    """Of the periods at which sequences end, in order: their last steps; what all that run until then hold there, as
    growth and offset; the most that is held at one of them or before, while one more sequence grows by a token a step
    from the beginning; and the most that is held at one of them or later."""

    steps: list[int]
    growths: list[int]
    offsets: list[int]
    before: list[int]
    after: list[int]


class Forecast:
    """The future of the KV pool, as far as output lengths are known: each sequence grows by a token a step until the
    step at which it is expected to end, when it returns all it has. So the pool is fullest just before one of these
    steps (Past-Future scheduling, Gong et al. 2025), and someone else may join if it is not too full then.

    Since all of this is told in steps from the beginning, none of it changes as long as nobody comes, leaves or
    outlives what was expected. period: in steps, to which ends are rounded up.
    """

    def __init__(self, lengths: LengthPredictor, *, period: int) -> None:
        self._lengths = lengths
        self._period = period
        self.now = 0  # in steps
        self._periods: dict[int, Period] = {}
        self._of: dict[Sequence, int] = {}
        self._peaks: Peaks | None = None

    def step(self) -> None:
        """The next step begins. Sequences that should have ended by now are expected to go on for a while."""
        self.now += 1
        if self.now % self._period == 0 and (late := self._periods.get(self.now // self._period - 1)) is not None:
            for sequence in list(late.sequences):
                self.remove(sequence)
                self.add(sequence)

    def add(self, sequence: Sequence) -> None:
        """It runs."""
        growth, offset, end = self._expected(sequence)
        period = self._periods.setdefault(end, Period())
        period.sequences[sequence] = growth, offset
        period.growth += growth
        period.offset += offset
        self._of[sequence] = end
        self._peaks = None

    def remove(self, sequence: Sequence) -> None:
        """It does not run any more."""
        end = self._of.pop(sequence)
        period = self._periods[end]
        growth, offset = period.sequences.pop(sequence)
        period.growth -= growth
        period.offset -= offset
        if not period.sequences:
            del self._periods[end]
        self._peaks = None

    def peak_with(self, sequence: Sequence) -> int:
        """The most tokens that the pool holds at any time if this sequence joins now and none after it."""
        peaks = self._peaks_at_ends()
        growth, offset, end = self._expected(sequence)
        last = (end + 1) * self._period
        at = bisect_left(peaks.steps, last)  # those that end before it
        peak = growth * last + offset
        if at < len(peaks.steps):
            peak = max(peak + peaks.growths[at] * last + peaks.offsets[at], peaks.after[at])
        if at > 0:
            # Where it has several samples, at most what they come to by the last of these ends.
            peak = max(peak, peaks.before[at - 1] + (growth - 1) * peaks.steps[at - 1] + offset)
        return peak

    @property
    def peak(self) -> int:
        """The most tokens that the pool holds at any time if nobody joins."""
        return max(self._peaks_at_ends().after, default=0)

    def _expected(self, sequence: Sequence) -> tuple[int, int, int]:
        """Its growth and offset, and the period in which it ends."""
        request = sequence.request
        most = request.max_total_tokens - len(request.prompt_token_ids)
        output = sequence.num_output
        left = self._lengths.predict(request.params.max_tokens, output, most) - output
        growth = 1 if request.forked else request.num_places
        end = (self.now + left) // self._period
        if request.pruning is not None:
            return 0, growth * request.pruning.num_held(len(sequence.tokens) + left), end
        return growth, len(sequence.tokens) + self._period // 2 * growth - growth * self.now, end

    def _peaks_at_ends(self) -> Peaks:
        if self._peaks is None:
            ends = sorted(self._periods)
            periods = [self._periods[end] for end in reversed(ends)]
            steps = [(end + 1) * self._period for end in ends]
            growths = list(accumulate([each.growth for each in periods]))[::-1]
            offsets = list(accumulate([each.offset for each in periods]))[::-1]
            held = [growth * step + offset for growth, step, offset in zip(growths, steps, offsets, strict=True)]
            before = list(accumulate(map(add, held, steps), max))
            after = list(accumulate(reversed(held), max))[::-1]
            self._peaks = Peaks(steps, growths, offsets, before, after)
        return self._peaks
