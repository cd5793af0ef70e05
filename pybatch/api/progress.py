"""How far a batch is, and what is left of it."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from pybatch.api.pace import Pace

if TYPE_CHECKING:
    from pybatch.engine.metrics import EngineMetrics

TOKENS_PER_BYTE = 0.25  # roughly, in English text; used until the first row is done


class BatchProgress:
    """Counts a batch's rows and tokens, and estimates the tokens and the time left.

    rows, size: the number of rows, and their size in bytes or characters; None if not known. max_output_tokens: the
    most that a sample may have; None if there is no limit but the context. samples: of a row, on average. now: a
    clock, in seconds.
    """

    def __init__(
        self,
        metrics: EngineMetrics,
        rows: int | None,
        size: int | None,
        max_output_tokens: int | None = None,
        samples: float = 1,
        now: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.metrics = metrics
        self.rows, self.size = rows, size
        self.max_output_tokens, self.samples = max_output_tokens, samples
        self.rows_done = self.rows_failed = self.prompt_tokens = 0
        self.rows_cached = self.rows_resumed = 0  # of those done, without work of this run
        self.rows_retried = 0  # that had failed in an earlier run: counted by the caller
        self._size_done = self._rows_answered = self._size_answered = 0  # answered: by the model, in this run
        self._rows_at_work = self._rows_repeating = 0  # of those that are not done
        self._new: float | None = None
        self._tokens_before, self._output_before = metrics.step_tokens, metrics.output_tokens
        self._steps_before, self._hits_before = metrics.steps, metrics.cached_tokens
        self._drain_began: int | None = None  # the step since which no row waits
        self._now, self._start = now, now()
        self._end: float | None = None
        self._lock = threading.Lock()
        self._pace = Pace(metrics, now)

    def finish(self, size: int, prompt_tokens: int, *, failed: bool, cached: bool = False) -> None:
        """Counts a row that this run has finished; size: its share of the whole size. cached: it has an answer that was
        there before, which was no work."""
        with self._lock:
            self._count(size, prompt_tokens, failed=failed, cached=cached)

    def _count(self, size: int, prompt_tokens: int, *, failed: bool, cached: bool) -> None:
        self.rows_done += 1
        self.rows_failed += failed
        self.rows_cached += cached
        self._size_done += size
        if not cached:
            self.prompt_tokens += prompt_tokens
            if not failed:
                self._rows_answered += 1
                self._size_answered += size

    def resume(self, size: int, *, rows: int = 1, failed: int = 0) -> None:
        """Counts rows that an earlier run has finished; size: of all of them. May be called on another thread than
        `finish`."""
        with self._lock:
            self.rows_done += rows
            self.rows_failed += failed
            self.rows_resumed += rows
            self._size_done += size

    def know(self, *, at_work: int, repeating: int, new: float | None = None) -> None:
        """What is known of the rows that are not done: how many the model is to answer, and how many wait for the
        answer of an equal row. new: the share of those seen last that the model is to answer, as is expected of all
        that have not been seen; None: that of all seen so far. (The longer one looks, the fewer rows are like none
        before.)"""
        self._rows_at_work, self._rows_repeating, self._new = at_work, repeating, new

    def stop(self) -> None:
        """Stops the clock, if it runs, so that all that is told of the batch afterwards agrees."""
        if self._end is None:
            self._end = self._now()

    @property
    def seconds(self) -> float:
        return (self._now() if self._end is None else self._end) - self._start

    @property
    def tokens(self) -> int:
        """Prompt and output tokens that the model has processed."""
        return self.metrics.step_tokens - self._tokens_before

    @property
    def output_tokens(self) -> int:
        return self.metrics.output_tokens - self._output_before

    @property
    def kv_usage(self) -> float:
        """Share of the KV blocks that are in use."""
        return self.metrics.kv_blocks_now / self.metrics.kv_blocks

    @property
    def recent_rate(self) -> float:
        """Prompt and output tokens per second, of the last seconds."""
        self._pace.observe()
        return self._pace.rate

    @property
    def tokens_left(self) -> float | None:
        """An estimate of the prompt and output tokens still to be processed; None while there is nothing to base it on.

        Prompt tokens are in proportion to the size of the rows left, as far as the prefix cache did not have them. For
        output tokens the mean of the finished rows would be too low, since short ones finish first; all output tokens
        per finished row is the maximum-likelihood mean of such censored lengths. Rows with answers that were there
        before are no work: as many of the rows left are expected to have one as of those seen so far.
        """
        return self._tokens_for(self._work_left) if self.rows is not None else None

    def _tokens_for(self, work: float) -> float | None:
        """work: so many of the rows left, which the model is to answer."""
        if self.size is None:
            return None
        if not self._rows_left:
            return 0.0
        output = self._output_of_a_sample()
        if output is None:
            return None
        computed = self.prompt_tokens - (self.metrics.cached_tokens - self._hits_before)
        per_size = computed / max(1, self._size_answered) if self._rows_answered else TOKENS_PER_BYTE
        begun = self.tokens - self.output_tokens - computed  # of prompts whose rows are not done
        size_left = (self.size - self._size_done) * work / self._rows_left
        return max(0.0, per_size * size_left - begun) + output * work * self.samples

    @property
    def _rows_left(self) -> int:
        assert self.rows is not None
        return max(0, self.rows - self.rows_done)

    @property
    def _work_left(self) -> float:
        """Of the rows left, how many the model is expected to answer."""
        at_work, repeating = min(self._rows_at_work, self._rows_left), self._rows_repeating
        computed = self._rows_answered + at_work
        seen = computed + self.rows_cached + repeating
        unknown = max(0, self._rows_left - at_work - repeating)
        return at_work + unknown * (self._new if self._new is not None else computed / seen if seen else 1.0)

    def _output_of_a_sample(self) -> float | None:
        """The output tokens that are expected of a sample that is not done."""
        age, limit = self._age_in_drain, self.max_output_tokens
        if not self._rows_answered:
            return None if limit is None else max(1.0, limit - (age or 0))
        if not age:
            return least(self.output_tokens / (self._rows_answered * self.samples), limit)
        return self._output_beyond(age)

    def _output_beyond(self, age: int) -> float:
        """The same for one that has gone on for `age` steps, or longer: what it does next is learnt from those that
        came near its age, this one and its like included. The mean over all would tell of a few endless answers that
        they are about to end, until they reach the limit."""
        near = age / 2
        lengths = self._lengths_above(near)
        exposure = sum(count * (length - near) for length, count in lengths)
        exposure += self._work_left * (age - near)
        ended = sum(count for _, count in lengths)
        limit = self.max_output_tokens
        return least(max(1.0, exposure / (1 + ended)), None if limit is None else max(1.0, limit - age))

    def _lengths_above(self, floor: float) -> list[tuple[float, int]]:
        """Lengths of finished samples, the means of their rows', and the number of rows that had each."""
        lengths = self.metrics.output_length.above(floor * self.samples)
        return [(length / self.samples, count) for length, count in lengths]

    @property
    def _age_in_drain(self) -> int | None:
        """Steps since the last row left the queue; None while rows wait."""
        if self.metrics.waiting_now or self.metrics.steps == self._steps_before or not self._all_rows_run:
            self._drain_began = None
            return None
        if self._drain_began is None:
            self._drain_began = self.metrics.steps if self.rows_done else self._steps_before
        return self.metrics.steps - self._drain_began

    @property
    def _all_rows_run(self) -> bool:
        if self.rows is None:
            return False
        return (self._rows_left - self._rows_repeating) * self.samples <= self.metrics.peak_batch

    @property
    def seconds_left(self) -> float | None:
        """An estimate of the time left; None while there is nothing to base it on.

        The tokens alone tell it only while the batch is full: after that it takes as many steps as the longest answer
        still has, and a step of few tokens is cheaper, but not in proportion. The last rows are reckoned with from the
        start, so that the estimate does not jump when the batch empties.

        Where most rows are no work, the engine's pace is that of an engine that waits for rows, so that the time goes
        by rows too, as far as it is not known that they are work.
        """
        if self.rows is None:
            return None
        expected, seen = self._seconds_for(self._work_left), self._rows_answered + self.rows_cached
        if expected is None or self.rows_cached <= seen / 2:
            return expected
        by_rows = self.seconds / seen * self._rows_left
        at_work = self._seconds_for(min(self._rows_at_work, self._rows_left)) or 0.0
        return max(at_work, min(expected or by_rows, by_rows))

    def _seconds_for(self, work: float) -> float | None:
        tokens, output = self._tokens_for(work), self._output_of_a_sample()
        if not tokens or output is None:
            return tokens
        metrics, left, age = self.metrics, work * self.samples, self._age_in_drain
        steps = metrics.steps - self._steps_before
        last = left if age is not None else min(left, metrics.step_sequences / max(1, metrics.steps))
        before = max(0.0, tokens - output * last) * steps / max(1, self.tokens)
        self._pace.observe()
        return self._pace.seconds_for(before + self._longest_of(last, output, age or 0), tokens)

    def _longest_of(self, samples: float, output: float, age: int) -> float:
        """The output tokens that the longest of so many samples still has, all of which have gone on for `age` steps:
        the mean times their harmonic number if they end at a steady rate, and no more than what has been seen where
        that is enough to tell."""
        limit = self.max_output_tokens
        longest = least(output * (1 + math.log(max(1.0, samples))), None if limit is None else max(1.0, limit - age))
        lengths = self._lengths_above(age)
        known = rest = sum(count for _, count in lengths)
        for length, count in lengths:
            rest -= count
            if known >= samples and rest * samples <= known / 2:  # one of twice as many is longer
                return min(longest, length - age)
        return longest

    @property
    def share_done(self) -> float | None:
        """Share of the tokens that are done, 0 to 1; None if tokens_left is None."""
        left = self.tokens_left
        return None if left is None else 1.0 if left == 0 else self.tokens / (self.tokens + left)

    def __str__(self) -> str:
        return f"{self.counts()} · {self.speed()}"

    def counts(self) -> str:
        """The rows, and those among them that are special."""
        rows = f"{self.rows_done:,}" if self.rows is None else f"{self.rows_done:,}/{self.rows:,}"
        special = (
            (self.rows_failed, "failed"),
            (self.rows_cached, "cached"),
            (self.rows_resumed, "resumed"),
        )
        listed = ", ".join(f"{count:,} {what}" for count, what in special if count)
        return f"{rows} rows ({listed})" if listed else f"{rows} rows"

    def speed(self) -> str:
        left = self.seconds_left
        remaining = "-:--" if left is None else clock(left)
        return f"{self.tokens:,} tokens · {self.recent_rate:,.0f} tok/s · KV {self.kv_usage:.0%} · {remaining} left"


def least(value: float, limit: float | None) -> float:
    return value if limit is None else min(value, limit)


def clock(seconds: float) -> str:
    """m:ss or h:mm:ss."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"
