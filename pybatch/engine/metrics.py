"""What the engine measures, per request and per step. Times are seconds; instants are of time.perf_counter()."""

from __future__ import annotations

import math
import time
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import accumulate
from math import ceil, log
from operator import sub

from pybatch.engine.standing import ORDINARY, Standing


@dataclass(slots=True)
class RequestMetrics:
    """One request's times and counts. Derived times are None until the request has got that far."""

    arrival_time: float
    num_prompt_tokens: int
    first_scheduled_time: float | None = None
    first_token_time: float | None = None
    finished_time: float | None = None
    num_output_tokens: int = 0  # of all samples
    num_samples: int = 1
    num_cached_tokens: int = 0  # prompt tokens found in the prefix cache
    num_disk_tokens: int = 0  # of these, read from prefix_cache_dir
    num_preemptions: int = 0

    @property
    def queue_time(self) -> float | None:
        return _between(self.arrival_time, self.first_scheduled_time)

    @property
    def prefill_time(self) -> float | None:
        return _between(self.first_scheduled_time, self.first_token_time)

    @property
    def decode_time(self) -> float | None:
        return _between(self.first_token_time, self.finished_time)

    @property
    def inference_time(self) -> float | None:
        return _between(self.first_scheduled_time, self.finished_time)

    @property
    def ttft(self) -> float | None:
        """Time to first token, from arrival."""
        return _between(self.arrival_time, self.first_token_time)

    @property
    def tpot(self) -> float | None:
        """Time per output token, not counting the first token of each sample."""
        later = self.num_output_tokens - self.num_samples
        return None if self.decode_time is None or later < 1 else self.decode_time * self.num_samples / later

    @property
    def e2e_time(self) -> float | None:
        return _between(self.arrival_time, self.finished_time)


def _between(begin: float | None, end: float | None) -> float | None:
    return None if begin is None or end is None else end - begin


class Distribution:
    """Quantiles of a stream of numbers from 1e-9 to 1e9, to within 1%, in 17 KiB: counts in buckets whose edges grow by
    2% (DDSketch, Masson et al. 2019)."""

    _RATIO = 1.02
    _PER_LOG = 1 / log(_RATIO)
    _FIRST = ceil(log(1e-9) * _PER_LOG)
    _SIZE = ceil(log(1e9) * _PER_LOG) - _FIRST + 1

    def __init__(self) -> None:
        self.count = 0
        self.total = 0.0
        self._buckets = array("q", bytes(8 * self._SIZE))  # the first is _FIRST's

    def add(self, value: float, times: int = 1) -> None:
        self.count += times
        self.total += value * times
        index = ceil(log(value) * self._PER_LOG) - self._FIRST if value > 0 else 0  # as _index, without its call
        self._buckets[0 if index < 0 else index if index < self._SIZE else -1] += times

    @property
    def mean(self) -> float:
        return self.total / self.count if self.count else math.nan

    def quantile(self, q: float) -> float:
        """The value that a fraction q in [0, 1] of the numbers does not exceed; NaN if there are no numbers."""
        rank = max(1, ceil(q * self.count))
        for bucket, count in enumerate(self._buckets, self._FIRST):
            rank -= count
            if rank <= 0:
                return self._middle(bucket)
        return math.nan

    def counts(self) -> Iterator[tuple[float, int]]:
        """The numbers in ascending order, each to within 1%, with how often it came."""
        return ((self._middle(bucket), count) for bucket, count in enumerate(self._buckets, self._FIRST) if count)

    def above(self, floor: float) -> list[tuple[float, int]]:
        """Those of `counts` that are above `floor`."""
        return [(value, count) for value, count in self.counts() if value > floor]

    def up_to(self, bounds: Iterable[float]) -> list[int]:
        """How many numbers are not above each bound, or above it by less than 2%."""
        sums = list(accumulate(self._buckets))
        return [sums[self._index(bound)] for bound in bounds]

    def copy(self) -> Distribution:
        """May be made on another thread than the one that adds."""
        copied = Distribution()
        copied._buckets, copied.total = self._buckets[:], self.total
        copied.count = sum(copied._buckets)
        return copied

    def since(self, earlier: Distribution) -> Distribution:
        """Of this one, a copy: what has been added after `earlier`, another copy, was made."""
        added = Distribution()
        if self.count != earlier.count:
            added._buckets = array("q", map(sub, self._buckets, earlier._buckets))
            added.count, added.total = self.count - earlier.count, self.total - earlier.total
        return added

    def _index(self, value: float) -> int:
        index = ceil(log(value) * self._PER_LOG) - self._FIRST if value > 0 else 0
        return min(max(index, 0), self._SIZE - 1)

    def _middle(self, bucket: int) -> float:
        return 2 * self._RATIO**bucket / (1 + self._RATIO)


class StepCost:
    """What a step costs: a fixed time, and a time for each token. By least squares over all steps, weighted by one over
    their tokens, so that the many large steps do not hide what the small ones cost."""

    def __init__(self) -> None:
        self._steps = self._tokens = 0
        self._seconds = 0.0
        self._steps_by_tokens = self._seconds_by_tokens = 0.0  # sums of 1 / tokens and of seconds / tokens

    def add(self, tokens: int, seconds: float) -> None:
        self._steps += 1
        self._tokens += tokens
        self._seconds += seconds
        self._steps_by_tokens += 1 / tokens
        self._seconds_by_tokens += seconds / tokens

    def line(self) -> tuple[float, float]:
        """Seconds for a step and seconds for each of its tokens, neither below 0. All is the tokens' where the steps
        are alike, which cannot tell the two apart."""
        if not self._steps:
            return 0.0, 0.0
        spread = self._tokens * self._steps_by_tokens - self._steps**2
        fixed = 0.0
        if spread > 1e-9 * self._steps**2:
            fixed = (self._tokens * self._seconds_by_tokens - self._steps * self._seconds) / spread
        fixed = min(max(fixed, 0.0), self._seconds / self._steps)
        return fixed, (self._seconds - fixed * self._steps) / self._tokens


@dataclass
class DraftCounts:
    """Of speculative decoding. drafts: how often a sequence's chunk had some. by_position: of the first tokens of all
    drafts, the second and so on, how many were right."""

    drafts: int = 0
    tokens: int = 0
    accepted_tokens: int = 0
    accepted_by_position: list[int] = field(default_factory=list)

    def add(self, tokens: int, accepted: int) -> None:
        self.drafts += 1
        self.tokens += tokens
        self.accepted_tokens += accepted
        counts = self.accepted_by_position
        counts += [0] * (tokens - len(counts))
        for position in range(accepted):
            counts[position] += 1


@dataclass(frozen=True, slots=True)
class MetricsSummary:
    """Totals and quantiles since the metrics began. Times in seconds, throughputs in tokens per second."""

    wall_time: float
    requests: int
    failed_requests: int
    prompt_tokens: int
    output_tokens: int
    cached_tokens: int
    disk_tokens: int
    preemptions: int
    output_throughput: float
    total_throughput: float
    queue_time_p50: float
    queue_time_p99: float
    ttft_p50: float
    ttft_p99: float
    tpot_p50: float
    tpot_p99: float
    e2e_p50: float
    e2e_p99: float
    steps: int
    tokens_per_step: float
    batch_occupancy: float  # mean sequences in a step
    peak_batch: int
    kv_blocks_used: float  # mean
    peak_kv_blocks: int
    kv_blocks: int
    schedule_time: float
    run_time: float
    sample_time: float
    draft_tokens: int
    accepted_draft_tokens: int


@dataclass
class EngineMetrics:
    """One engine's counters. Their memory does not grow, however long the engine runs."""

    kv_blocks: int
    started: float = field(default_factory=time.perf_counter)
    steps: int = 0
    step_tokens: int = 0
    step_sequences: int = 0
    peak_batch: int = 0
    step_blocks: int = 0
    peak_kv_blocks: int = 0
    kv_blocks_now: int = 0
    waiting_now: int = 0  # sequences in the queue
    preemptions: int = 0
    swapped_out_blocks: int = 0  # KV blocks of preempted sequences that were moved to the host
    swapped_in_blocks: int = 0  # and back
    host_blocks_now: int = 0  # that are there
    schedule_time: float = 0.0
    run_time: float = 0.0
    sample_time: float = 0.0
    step_cost: StepCost = field(default_factory=StepCost)
    drafts: DraftCounts = field(default_factory=DraftCounts)
    requests: int = 0
    failed_requests: int = 0
    prompt_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    disk_tokens: int = 0  # of these, read from prefix_cache_dir
    prefilled_tokens: int = 0  # of prompts whose first token has come
    prefilled_cached_tokens: int = 0
    prefilled_disk_tokens: int = 0
    # Of requests with a target and what it is of, by "ttft" or "tpot" and whether they met it
    targets: Counter[tuple[str, bool]] = field(default_factory=Counter)
    finish_reasons: Counter[str] = field(default_factory=Counter)  # of requests; "abort" is in no other count
    step_size: Distribution = field(default_factory=Distribution)  # tokens
    ttft: Distribution = field(default_factory=Distribution)  # of requests whose first token has come
    interactive_ttft: Distribution = field(default_factory=Distribution)  # of those that are no background work
    inter_token: Distribution = field(default_factory=Distribution)  # seconds between two tokens of a sample
    queue_time: Distribution = field(default_factory=Distribution)  # this and all below: of requests that have finished
    prefill_time: Distribution = field(default_factory=Distribution)
    decode_time: Distribution = field(default_factory=Distribution)
    inference_time: Distribution = field(default_factory=Distribution)
    tpot: Distribution = field(default_factory=Distribution)
    e2e: Distribution = field(default_factory=Distribution)
    prompt_length: Distribution = field(default_factory=Distribution)  # in tokens; of requests that did not fail
    output_length: Distribution = field(default_factory=Distribution)  # of all samples of a request
    max_tokens: Distribution = field(default_factory=Distribution)  # of each sample, as asked for or what fits
    samples: Distribution = field(default_factory=Distribution)

    def step(
        self,
        *,
        tokens: int,
        sequences: int,
        waiting: int,
        kv_blocks: int,
        preemptions: int,
        schedule_time: float,
        run_time: float,
        sample_time: float,
    ) -> None:
        self.steps += 1
        self.step_tokens += tokens
        self.step_sequences += sequences
        self.peak_batch = max(self.peak_batch, sequences)
        self.step_blocks += kv_blocks
        self.peak_kv_blocks = max(self.peak_kv_blocks, kv_blocks)
        self.kv_blocks_now = kv_blocks
        self.waiting_now = waiting
        self.preemptions += preemptions
        self.schedule_time += schedule_time
        self.run_time += run_time
        self.sample_time += sample_time
        self.step_cost.add(tokens, schedule_time + run_time + sample_time)
        self.step_size.add(tokens)

    def first_token(self, request: RequestMetrics, *, background: bool = False) -> None:
        self.prefilled_tokens += request.num_prompt_tokens
        self.prefilled_cached_tokens += request.num_cached_tokens
        self.prefilled_disk_tokens += request.num_disk_tokens
        if request.ttft is not None:
            self.ttft.add(request.ttft)
            if not background:
                self.interactive_ttft.add(request.ttft)

    def finished(
        self,
        request: RequestMetrics,
        *,
        failed: bool,
        reason: str = "stop",
        max_tokens: int | None = None,
        standing: Standing = ORDINARY,
    ) -> None:
        """reason: why its generation ended, unless it failed. max_tokens: how many it might have had. standing: has its
        targets."""
        for name, target, seconds in (
            ("ttft", standing.ttft_target, request.ttft),
            ("tpot", standing.tpot_target, request.tpot),
        ):
            if target is not None and seconds is not None:
                self.targets[name, seconds <= target] += 1
        self.finish_reasons["error" if failed else reason] += 1
        self.requests += 1
        self.failed_requests += failed
        self.prompt_tokens += request.num_prompt_tokens
        self.cached_tokens += request.num_cached_tokens
        self.disk_tokens += request.num_disk_tokens
        for distribution, value in (
            (self.queue_time, request.queue_time),
            (self.prefill_time, request.prefill_time),
            (self.decode_time, request.decode_time),
            (self.inference_time, request.inference_time),
            (self.tpot, request.tpot),
            (self.e2e, request.e2e_time),
            (self.prompt_length, None if failed else request.num_prompt_tokens),
            (self.output_length, None if failed else request.num_output_tokens),
            (self.max_tokens, None if failed else max_tokens),
            (self.samples, None if failed else request.num_samples),
        ):
            if value is not None:
                distribution.add(value)

    def summary(self) -> MetricsSummary:
        wall = time.perf_counter() - self.started
        steps = max(self.steps, 1)
        return MetricsSummary(
            wall_time=wall,
            requests=self.requests,
            failed_requests=self.failed_requests,
            prompt_tokens=self.prompt_tokens,
            output_tokens=self.output_tokens,
            cached_tokens=self.cached_tokens,
            disk_tokens=self.disk_tokens,
            preemptions=self.preemptions,
            output_throughput=self.output_tokens / wall,
            total_throughput=(self.prompt_tokens + self.output_tokens) / wall,
            queue_time_p50=self.queue_time.quantile(0.5),
            queue_time_p99=self.queue_time.quantile(0.99),
            ttft_p50=self.ttft.quantile(0.5),
            ttft_p99=self.ttft.quantile(0.99),
            tpot_p50=self.tpot.quantile(0.5),
            tpot_p99=self.tpot.quantile(0.99),
            e2e_p50=self.e2e.quantile(0.5),
            e2e_p99=self.e2e.quantile(0.99),
            steps=self.steps,
            tokens_per_step=self.step_tokens / steps,
            batch_occupancy=self.step_sequences / steps,
            peak_batch=self.peak_batch,
            kv_blocks_used=self.step_blocks / steps,
            peak_kv_blocks=self.peak_kv_blocks,
            kv_blocks=self.kv_blocks,
            schedule_time=self.schedule_time,
            run_time=self.run_time,
            sample_time=self.sample_time,
            draft_tokens=self.drafts.tokens,
            accepted_draft_tokens=self.drafts.accepted_tokens,
        )
