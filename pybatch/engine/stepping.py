"""A step: schedule, run, sample, update."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from functools import partial

from pybatch.engine.computing import Computed, Launched
from pybatch.engine.config import EngineConfig
from pybatch.engine.execution.kv_cache import KvCache
from pybatch.engine.make_scheduler import make_scheduler, make_states
from pybatch.engine.metrics import EngineMetrics
from pybatch.engine.parts import Parts
from pybatch.engine.request_table import RequestTable
from pybatch.engine.scheduling.block_pool import BlockPool
from pybatch.engine.scheduling.sequence import Status
from pybatch.engine.scheduling.step import Chunk, Step
from pybatch.engine.scheduling.swap_space import SwapSpace
from pybatch.engine.scheduling.target_budget import TargetBudget
from pybatch.engine.updating import TokenUpdater
from pybatch.machine.faults import describe, is_request_fault

logger = logging.getLogger(__name__)

_IDLE_SLEEP = 0.001  # seconds, where a policy holds back all there is


class Stepper:
    """Takes an engine's steps. Its books of blocks and states, its scheduler and its updater are made anew where the
    unfinished requests begin again.

    config: of a device.
    """

    def __init__(self, config: EngineConfig, parts: Parts) -> None:
        self.config, self.metrics, self.prefix_files = config, parts.metrics, parts.prefix_files
        self.num_kv_blocks, self.num_states = parts.sizes.num_kv_blocks, parts.sizes.num_states  # slots of states
        self.num_host_blocks = parts.num_host_blocks
        self._tokenizer, self._eos_ids, self._pooler = parts.tokenizer, parts.eos_ids, parts.pooler
        self._kv_cache, self._pruner, self._swap_cost = parts.kv_cache, parts.pruner, parts.swap_cost
        self._computer, self._speculator = parts.computer, parts.speculator
        self._entrance, self._looks_ahead = parts.entrance, parts.looks_ahead
        self._requests = RequestTable(parts.intake.room, parts.adapters)
        self._ahead: _Step | None = None  # queued behind the step whose tokens were taken last
        self._last_end = 0.0
        self._targets = TargetBudget(config.max_num_batched_tokens)
        self._pool = BlockPool(self.num_kv_blocks)
        self._new_schedule()

    def check_integrity(self) -> None:
        """Raises IntegrityError unless every KV block is accounted for: with no request left, all are free."""
        self._scheduler.check_integrity(under_way=self._ahead is not None)

    def _new_schedule(self) -> None:
        """A pool with pins alone and a new scheduler, in whose queue the unfinished sequences are, with their tokens
        alone."""
        self._ahead = None
        self._preemptions = 0  # that are counted
        self._pool = BlockPool(self.num_kv_blocks, self._pool.pins)
        self._states = make_states(self.config, self.num_states, self._pool.pins)
        swap_space = SwapSpace(self.num_host_blocks, self._swap_cost.pays) if self.num_host_blocks else None
        if self.prefix_files is not None and swap_space is not None:
            self.prefix_files.before_load = partial(_swap, swap_space, self._kv_cache, self.metrics)
        self._scheduler = make_scheduler(
            self.config,
            self._pool,
            swap_space=swap_space,
            prefix_store=self.prefix_files,
            states=self._states,
            targets=self._targets,
        )
        self._updater = TokenUpdater(
            self._scheduler, self._kv_cache, self._pruner, self.metrics, self._tokenizer, self._eos_ids, self._pooler
        )
        for request in self._requests.unfinished.values():
            if not self._entrance.has_admitted(request):
                continue
            if request.beams is not None:
                request.gather(self.config.block_size)
            for sequence in request.sequences:
                if sequence.status is not Status.FINISHED:
                    sequence.reset()
            for sequence in request.sequences if request.forked else request.sequences[:1]:
                if sequence.status is not Status.FINISHED:
                    self._scheduler.add(sequence)

    def _step(self) -> None:
        """Where the device works by itself the next step is queued before this one's tokens are there: see
        docs/architecture.md."""
        step, self._ahead = self._ahead or self._begin(), None
        if step is None:
            time.sleep(_IDLE_SLEEP if self._requests and not self._requests.has_ready else 0)
            return
        if step.launched is None:
            computed = self._computer.compute(step.chunks, self._scheduler.unwritten_blocks)
            run = step.scheduled + computed.run_time
            self._scheduler.advance(computed.chunks)
        else:
            self._scheduler.advance(step.chunks)
            try:
                if _are_foreseeable(step.chunks) and step.launched.goes_on:
                    self._ahead = self._begin(step.launched)
                run = time.perf_counter()
                computed = step.launched.read()
            except BaseException as error:
                if not is_request_fault(error):
                    raise
                self._requests.began_again = True  # and so step by step, which tells whose fault it is
                self._new_schedule()
                return
        self._update(computed)
        if not self._requests:
            self._ahead = None
        if self.prefix_files is not None:
            self.prefix_files.store(self._pool)
        now = time.perf_counter()
        if self._speculator is not None:
            self._speculator.learn(now - step.scheduled)
        begin, self._last_end = max(step.begin, self._last_end), now
        tokens = sum([chunk.num_tokens for chunk in step.chunks])
        self._scheduler.learn(step.filled, tokens, now - begin)
        self.metrics.step(
            tokens=tokens,
            sequences=len(step.chunks),
            waiting=len(self._scheduler.waiting),
            kv_blocks=self._pool.num_used,
            preemptions=self._scheduler.preemption.count - self._preemptions,
            schedule_time=step.scheduled - step.begin,
            run_time=computed.run_time,
            sample_time=now - run,  # of a step that was queued ahead, what the device is waited for too
        )
        self._preemptions = self._scheduler.preemption.count

    def _begin(self, behind: Launched | None = None) -> _Step | None:
        """Schedules a step, and queues it if the next may be scheduled before its tokens are known. behind: the step
        before, whose tokens are not. None if nothing can run."""
        begin = time.perf_counter()
        for request, error in self._entrance.take():
            if error is None:
                self._scheduler.add(request.sequences[0])
            else:
                self._updater.fail(request, error, "invalid_request")
                self._requests.tell(request, self.metrics)
        chunks = self._schedule() if behind is None else self._scheduler.schedule()
        if self._scheduler.swap_space is not None:
            _swap(self._scheduler.swap_space, self._kv_cache, self.metrics)
        if copies := self._scheduler.take_copies():
            self._kv_cache.copy_blocks(copies)
        if not chunks:
            return None
        self._draft(chunks)
        step = _Step(chunks, self._scheduler.step, begin, time.perf_counter())
        if behind is not None or (self._looks_ahead and not self._requests.began_again and _are_foreseeable(chunks)):
            try:
                step.launched = self._computer.launch(chunks, behind)
            except BaseException as error:
                if behind is not None or not is_request_fault(error):
                    raise
        return step

    def _schedule(self) -> list[Chunk]:
        """The next step's chunks. A request that makes the scheduler raise ends with that error. Scheduling may have
        stopped anywhere, so the others begin again from their tokens; so do all where no request can be named, unless
        that happened before and none has ended since: then it would again, and all end with the error."""
        while self._requests:
            try:
                return self._scheduler.schedule()
            except BaseException as error:
                if not is_request_fault(error):
                    raise
                what = describe(error)
            at = self._scheduler.running.at
            if at is not None:
                failed = [at.request]
            else:
                failed = list(self._requests.unfinished.values()) if self._requests.began_again else []
                self._requests.began_again = True
            self._new_schedule()
            for request in failed:
                self._updater.fail(request, what)
                self._requests.tell(request, self.metrics)
        return []

    def _draft(self, chunks: list[Chunk]) -> None:
        """Adds drafts, where these are wanted. If that fails it is no request's fault: the step goes on without."""
        if self._speculator is None:
            return
        try:
            self._speculator.draft(chunks, self._scheduler.drafts)
        except BaseException as error:
            if not is_request_fault(error):
                raise
            logger.warning("a step has fewer drafts: %s", describe(error))

    def _update(self, computed: Computed) -> None:
        """Takes what was computed into the requests, and outputs what there is to tell."""
        for chunk, right in computed.verified:
            chunk.sequence.num_computed -= len(chunk.drafts) - right
        for request, entries in computed.prompt_logprobs:
            assert request.prompt_logprobs is not None
            request.prompt_logprobs += entries
        if computed.faults:
            self._scheduler.retract([chunk for chunk, _ in computed.faults] + computed.postponed)
            for chunk, error in computed.faults:
                self._updater.fail(chunk.sequence.request, error)
        told = [chunk.sequence.request for chunk, _ in computed.faults]
        told += self._updater.prune(computed.chunks)
        told += self._updater.take(computed)
        told += self._updater.pool(computed)
        for chunk, right in computed.verified:
            self.metrics.drafts.add(len(chunk.drafts), right)
            self._scheduler.drafts.settle(chunk)
        for request in dict.fromkeys(told):
            if request.stream or request.finished:
                self._requests.tell(request, self.metrics)


@dataclass(slots=True)
class _Step:
    """One that is scheduled. filled: what the scheduler knows of it. launched: None: it has yet to be computed."""

    chunks: list[Chunk]
    filled: Step
    begin: float
    scheduled: float
    launched: Launched | None = None


def _are_foreseeable(chunks: list[Chunk]) -> bool:
    """Whether the next step can be scheduled, and its tokens drawn, without knowing which tokens these draw."""
    return all(chunk.sequence.request.params.foreseeable for chunk in chunks)


def _swap(space: SwapSpace, kv_cache: KvCache, metrics: EngineMetrics) -> None:
    """Makes the moves that are due."""
    outs, ins = space.take_moves()
    kv_cache.swap_out(outs)
    kv_cache.swap_in(ins)
    metrics.swapped_out_blocks += len(outs)
    metrics.swapped_in_blocks += len(ins)
    metrics.host_blocks_now = space.num_used
