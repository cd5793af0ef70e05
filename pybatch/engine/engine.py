"""The engine: requests in, outputs out, one step at a time: schedule, run, sample, update."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from functools import partial

from pybatch.engine.adapters import Adapters
from pybatch.engine.cache_sizes import cache_sizes
from pybatch.engine.computing import Computed, Launched, StepComputer
from pybatch.engine.config import EngineConfig
from pybatch.engine.disk.make import make_prefix_files
from pybatch.engine.entrance import Entrance
from pybatch.engine.execution.attention_mass import AttentionMass
from pybatch.engine.execution.caches import make_caches
from pybatch.engine.execution.kv_cache import KvCache
from pybatch.engine.execution.kv_pruner import KvPruner, no_pruning
from pybatch.engine.execution.model_runner import ModelRunner
from pybatch.engine.execution.parallel.followers import Followers, LedAdapterSlots, LedKvCache
from pybatch.engine.execution.pooler import Pooler
from pybatch.engine.execution.sampler import Sampler
from pybatch.engine.execution.swap_cost import SwapCost
from pybatch.engine.grammars import GrammarQueue
from pybatch.engine.intake import Intake
from pybatch.engine.make_scheduler import make_scheduler, make_states
from pybatch.engine.metrics import EngineMetrics, RequestMetrics
from pybatch.engine.outputs import RequestOutput
from pybatch.engine.pooling_params import Params
from pybatch.engine.request_table import RequestTable
from pybatch.engine.sampling_params import SamplingParams
from pybatch.engine.scheduling.block_pool import BlockPool, Pin
from pybatch.engine.scheduling.sequence import Request, Status
from pybatch.engine.scheduling.step import Chunk, Step
from pybatch.engine.scheduling.swap_space import SwapSpace
from pybatch.engine.scheduling.target_budget import TargetBudget
from pybatch.engine.speculation.make import make_speculator
from pybatch.engine.standing import ORDINARY, Standing
from pybatch.engine.structured.compiler import GrammarCompiler
from pybatch.engine.updating import TokenUpdater
from pybatch.machine.faults import describe, is_request_fault
from pybatch.machine.torch_state import in_neutral_torch, on_device
from pybatch.model.decoder import Decoder
from pybatch.model.lora.slots import AdapterSlots
from pybatch.model.pooling import LAST_TOKEN, PoolingConfig
from pybatch.model.text.tokenizer import Tokenizer

logger = logging.getLogger(__name__)

_IDLE_SLEEP = 0.001  # seconds, where a policy holds back all there is


class Engine:
    """Runs many requests at once on one model. Not for use by two threads at a time.

    tokenizer may be None: then outputs have no text, and stop strings are refused. draft_decoder: the draft model of
    config's speculative_config, where that names one. followers: the other ranks, where several hold the decoder.
    pooling: how the model embeds. labels: as Pooler's. adapter_slots: of the decoder, where requests may name adapters.

    A request that fails comes out with finish_reason "error" and disturbs no other: a step that raises is tried again
    without the request at fault. A step raises only for a fault of the machine (out of memory, a broken device) or an
    interrupt: then the engine discards the unfinished requests and resets, and take_outputs() has what was ready.
    """

    @in_neutral_torch
    @on_device(lambda engine, decoder, *arguments, **named: decoder.device)
    def __init__(
        self,
        decoder: Decoder,
        tokenizer: Tokenizer | None,
        config: EngineConfig,
        draft_decoder: Decoder | None = None,
        followers: Followers | None = None,
        *,
        pooling: PoolingConfig = LAST_TOKEN,
        labels: tuple[int, int] | None = None,
        adapter_slots: AdapterSlots | None = None,
    ) -> None:
        self.config = config = config.on(decoder.device.type)
        self._decoder = decoder
        self._tokenizer = tokenizer
        self._draft_decoder = draft_decoder if config.speculation and config.speculation.model else None
        sizes = cache_sizes(decoder, config, self._draft_decoder, followers)
        self.max_model_len, self.num_kv_blocks = sizes.max_model_len, sizes.num_kv_blocks
        self.kv_block_bytes = sizes.kv_block_bytes  # with a draft model's
        self.num_states, self.state_bytes = sizes.num_states, sizes.state_bytes  # slots of states, and bytes of all
        if followers is not None:
            followers.tell("make_caches", config, self.num_kv_blocks, self.num_states)
        make_kv_cache = KvCache if followers is None else partial(LedKvCache, followers)
        self._kv_cache, caches = make_caches(decoder, config, self.num_kv_blocks, self.num_states, make_kv_cache)
        shapes = self._kv_cache.layout.shapes
        mass = AttentionMass(len(shapes), max(shape.kv_heads for shape in shapes), decoder.device)
        runner = ModelRunner.of(
            config,
            decoder,
            caches,
            self.max_model_len,
            mass=mass,
            followers=followers,
            max_drafts=0 if config.speculation is None else config.speculation.num_speculative_tokens,
            adapters=adapter_slots is not None,
        )
        if followers is None:
            runner.record_graphs()
        decode_token = (lambda token: None) if tokenizer is None else tokenizer.token_text
        sampler = Sampler(decode_token, decoder.config.vocab_size, decoder.device)
        self._computer = StepComputer(runner, sampler)
        self._looks_ahead = runner.is_ahead_of_device and not (followers or self.num_states or config.speculation)
        self._ahead: _Step | None = None  # queued behind the step whose tokens were taken last
        self._last_end = 0.0
        self._speculator = make_speculator(
            config,
            draft_decoder,
            vocab_size=decoder.config.vocab_size,
            num_blocks=self.num_kv_blocks,
            max_model_len=self.max_model_len,
        )
        own_ids = () if tokenizer is None else tokenizer.eos_token_ids
        all_ids = {*decoder.config.eos_token_ids, *own_ids}
        self._eos_ids = frozenset(token for token in all_ids if 0 <= token < decoder.config.vocab_size)
        model = decoder.config
        self.pooling = pooling
        self._pooler = Pooler(decoder, pooling, labels if followers is None else None)
        if followers is None or adapter_slots is None:
            self.adapters = Adapters(adapter_slots)
        else:
            self.adapters = Adapters(LedAdapterSlots(followers, adapter_slots))
        self._intake = Intake(
            tokenizer,
            eos_ids=self._eos_ids,
            vocab_size=decoder.config.vocab_size,
            max_model_len=self.max_model_len,
            seed=config.seed or 0,
            max_num_seqs=min(config.max_num_seqs, config.max_num_batched_tokens),
            num_kv_blocks=self.num_kv_blocks,
            block_size=config.block_size,
            num_states=self.num_states,
            no_pruning=no_pruning(decoder) if followers is None else "several ranks hold the model",
            no_text=None if model.generates else f"{model.name} has no projection to the vocabulary",
            pooling=self._pooler.pooling,
            adapters=self.adapters,
        )
        self._pruner = KvPruner(self._kv_cache, decoder, mass)
        self.metrics = EngineMetrics(self.num_kv_blocks)
        self._requests = RequestTable(self._intake.room, self.adapters)
        make_compiler = partial(
            GrammarCompiler,
            tokenizer,
            vocab_size=decoder.config.vocab_size,
            eos_ids=self._eos_ids,
            seconds=config.structured_outputs_timeout,
        )
        self._entrance = Entrance(GrammarQueue(make_compiler), self.adapters)
        self._pool = BlockPool(self.num_kv_blocks)
        size = int(config.swap_space * 2**30)
        self.num_host_blocks = self._kv_cache.make_host_pool(size) if size else 0
        step_cost = self.metrics.step_cost  # not self in the lambda: that would be a cycle
        self._swap_cost = SwapCost(self._kv_cache.seconds_per_swap, lambda: step_cost.line()[1])
        self.prefix_files = make_prefix_files(config, decoder, self._kv_cache, lambda: step_cost.line()[1])
        self._targets = TargetBudget(config.max_num_batched_tokens)
        self._new_schedule()

    @property
    def decoder(self) -> Decoder:
        """The model that the engine runs."""
        return self._decoder

    @property
    def weight_bytes(self) -> int:
        """With a draft model's."""
        draft = self._draft_decoder
        return self._decoder.weight_bytes() + (0 if draft is None else draft.weight_bytes())

    @property
    def kv_blocks_touched(self) -> int:
        """How many blocks of the pool have ever been used: on a CPU only their memory is resident."""
        return self._pool.num_touched

    @property
    def kv_cache_bytes(self) -> int:
        """Of the whole pool, of a draft model's, and of recurrent states; memory that no request has touched yet is not
        resident."""
        return self.num_kv_blocks * self.kv_block_bytes + self.state_bytes

    def add_request(
        self,
        request_id: str,
        prompt_token_ids: list[int],
        params: Params,
        *,
        prompt: str | None = None,
        stream: bool = False,
        index: int = 0,
        arrival_time: float | None = None,
        standing: Standing = ORDINARY,
    ) -> None:
        """Queues a request. Raises ValueError, with the numbers, if it can never be run, QueueFullError if too many
        others wait (background work neither counts nor is refused); nothing is left of it then.

        params: copied. prompt: the text, handed through to the outputs. stream: an output after every step that brought
        something new, as params.output_kind has it. index: the prompt's place among the caller's prompts, so that equal
        prompts without a seed draw differently. arrival_time: by time.perf_counter(); None: now. standing: when it
        runs, as Scheduler has it.
        """
        if not standing.background:
            self.config.expect_place(self._requests.num_bounded)
        request = self._intake.request(
            request_id,
            prompt_token_ids,
            params,
            prompt=prompt,
            stream=stream,
            index=index,
            arrival_time=arrival_time,
            standing=standing,
        )
        self._add(request)

    def _add(self, request: Request) -> None:
        self._requests.expect_new(request)
        if self._entrance.admit(request):
            self._scheduler.add(request.sequences[0])
        self._requests.add(request)

    def pin_prefix(self, request_id: str, prompt_token_ids: list[int]) -> Pin:
        """Queues a request that computes a prefix, and keeps its KV blocks when it has finished. Its output has a token
        that is of no use. If it fails or is aborted nothing is pinned.

        Raises ValueError, with the numbers, if it does not leave room for a request that has not finished.
        """
        if not self.config.enable_prefix_caching:
            raise ValueError("pin_prefix: enable_prefix_caching is off, so that no prefix would be found again")
        params = SamplingParams(temperature=0, max_tokens=1, detokenize=False)
        request = self._intake.request(request_id, prompt_token_ids, params)
        request.pin = pin = Pin(request.prompt_token_ids)
        self._intake.room.add(pin, self._requests.unfinished.values())
        try:
            self._add(request)
        except ValueError:
            self._intake.room.remove(pin)
            raise
        return pin

    def unpin(self, pin: Pin) -> None:
        """Makes the prefix one like any other in the cache. Does nothing if it is not pinned."""
        self._pool.unpin(pin)
        if self._states is not None:
            self._states.unpin(pin)
        self._intake.room.remove(pin)

    def expect_runnable(self, prompt_token_ids: list[int], params: Params) -> None:
        """Raises ValueError where add_request would. Any thread may call it."""
        self._intake.accept(prompt_token_ids, params)

    @in_neutral_torch
    @on_device(lambda engine: engine.decoder.device)
    def step(self) -> list[RequestOutput]:
        """One step of the batch. Returns every request that finished, and what is new of those that stream."""
        try:
            self._step()
        except BaseException:
            try:
                for request in list(self._requests.unfinished.values()):
                    if request.finished:
                        self._requests.tell(request, self.metrics)
            finally:
                self._requests.discard_all()
                self._intake.room.pins = self._pool.pins
                self._new_schedule()
            raise
        return self.take_outputs()

    def take_outputs(self) -> list[RequestOutput]:
        """Those that were ready when a step raised."""
        return self._requests.take_ready()

    def abort(self, request_id: str) -> None:
        """Drops a request; no output of it follows. An id that is not known, or has finished, is ignored."""
        request = self._requests.pop(request_id)
        if request is not None:
            for sequence in request.sequences:
                sequence.finish_reason = "abort"
                self._scheduler.finish(sequence)
            self._requests.release(request)
            self.metrics.finish_reasons["abort"] += 1

    def reset_prefix_cache(self) -> bool:
        """Forgets cached prefixes but pinned ones. Does nothing and returns False while requests are unfinished."""
        if self._requests:
            return False
        self._pool.forget_cached()
        if self._states is not None:
            self._states.pool.forget_cached()
        return True

    def has_unfinished(self) -> bool:
        return len(self._requests) > 0

    def num_unfinished(self) -> int:
        return len(self._requests)

    @property
    def num_running(self) -> int:
        """Samples that are in the batch. This and the two below are of now, and may be read on any thread."""
        return len(self._scheduler.running)

    @property
    def num_waiting(self) -> int:
        """Samples that wait for a place in the batch, or for their grammar: new ones, and those that were preempted."""
        return len(self._scheduler.waiting) + len(self._entrance)

    @property
    def num_kv_blocks_used(self) -> int:
        return self._pool.num_used

    @property
    def num_kv_blocks_pinned(self) -> int:
        """Of those in use."""
        return self._pool.num_pinned

    @property
    def swap_seconds(self) -> float:
        """For a block to the host and back, measured when it is first asked for; 0 without a swap_space."""
        return self._swap_cost.seconds_per_block if self.num_host_blocks else 0.0

    def metrics_of(self, request_id: str) -> RequestMetrics | None:
        """Of an unfinished request, with the tokens that it has so far; None for any other. Of any thread."""
        return self._requests.metrics_of(request_id)

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

    # ---- a step ----

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
