"""The engine's own scheduler on a virtual clock: how a workload would run, without running the model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from pybatch.engine.config import EngineConfig
from pybatch.engine.intake import Intake
from pybatch.engine.kv_policies import KvPolicy
from pybatch.engine.make_scheduler import make_scheduler, make_states
from pybatch.engine.metrics import Distribution, RequestMetrics
from pybatch.engine.sampling_params import SamplingParams
from pybatch.engine.scheduling.block_pool import BlockPool
from pybatch.engine.scheduling.scheduler import Scheduler
from pybatch.engine.scheduling.sequence import Request
from pybatch.engine.scheduling.step import Chunk
from pybatch.engine.scheduling.swap_space import SwapSpace
from pybatch.engine.standing import ORDINARY, Standing
from pybatch.tune.step_times import StepShape

_CHUNK = 256  # tokens, by which the time for one is told
_IDLE = 0.001  # seconds, where the policy holds back all there is


@dataclass(frozen=True, slots=True)
class Work:
    """A request: its prompt, how many tokens (at least 1) each of its samples comes to, and how many it may come to at
    most, as SamplingParams has it; 0: as many as they do. standing: when it runs; its targets are the simulated
    clock's."""

    prompt_token_ids: Sequence[int]
    output_tokens: Sequence[int]
    max_tokens: int | None = 0
    kv_policy: KvPolicy | dict[str, Any] | None = None
    standing: Standing = ORDINARY


@dataclass(slots=True)
class SimulatedRun:
    """What EngineMetrics would say. decode_seconds: of the steps that only decode. sequences: summed over the steps.
    peak_kv_blocks: in a step, before those that end with it return theirs. touched_kv_blocks: that have ever been used:
    the prefix cache keeps the contents of a block as long as there is another one. ttft, tpot: as RequestMetrics has
    them, of the requests that have ended."""

    ended: Callable[[RequestMetrics], None] = field(default=lambda request: None, repr=False, compare=False)
    seconds: float = 0.0
    decode_seconds: float = 0.0
    steps: int = 0
    tokens: int = 0
    sequences: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    preemptions: int = 0
    peak_kv_blocks: int = 0
    touched_kv_blocks: int = 0
    ttft: Distribution = field(default_factory=Distribution, compare=False)
    tpot: Distribution = field(default_factory=Distribution, compare=False)

    def end(self, request: RequestMetrics, output_tokens: int) -> None:
        """Now, with so many tokens of all samples."""
        request.finished_time, request.num_output_tokens = self.seconds, output_tokens
        self.prompt_tokens += request.num_prompt_tokens
        self.cached_tokens += request.num_cached_tokens
        for distribution, value in ((self.ttft, request.ttft), (self.tpot, request.tpot)):
            if value is not None:
                distribution.add(value)
        self.ended(request)


class Simulator:
    """An engine without a model.

    config: what it leaves open is a CPU's. step_seconds: how long a step takes, such as StepTimes.seconds.
    max_model_len, num_kv_blocks, num_host_blocks, num_states: as the engine has them; states are the slots of recurrent
    ones. swap_seconds: for a block to the host and back.
    """

    def __init__(
        self,
        config: EngineConfig,
        step_seconds: Callable[[StepShape], float],
        *,
        max_model_len: int,
        num_kv_blocks: int,
        num_host_blocks: int = 0,
        num_states: int = 0,
        swap_seconds: float = 0.0,
    ) -> None:
        self._config = config = config.on("cpu")
        self._num_states = num_states
        self._step_seconds, self._num_kv_blocks = step_seconds, num_kv_blocks
        self._num_host_blocks, self._swap_seconds = num_host_blocks, swap_seconds
        self._intake = Intake(
            None,
            eos_ids=frozenset(),
            vocab_size=2**63,  # a prompt's tokens only need to differ where the real ones do
            max_model_len=max_model_len,
            seed=0,
            max_num_seqs=config.max_num_seqs,
            num_kv_blocks=num_kv_blocks,
            block_size=config.block_size,
        )

    def run(
        self, requests: Iterable[Work], ended: Callable[[RequestMetrics], None] = lambda request: None
    ) -> SimulatedRun:
        """Draws requests while there is room for them, as bulk jobs do. ended: called with what each was, by the
        simulated clock. Raises ValueError for one that never fits."""
        config = self._config
        run = SimulatedRun(ended)
        pool = BlockPool(self._num_kv_blocks)
        swap_space = SwapSpace(self._num_host_blocks, self._swap_pays) if self._num_host_blocks else None
        scheduler = make_scheduler(
            config, pool, swap_space=swap_space, states=make_states(config, self._num_states), clock=lambda: run.seconds
        )
        arriving = iter(requests)
        unfinished: dict[Request, Work] = {}
        while True:
            for work in list(islice(arriving, config.requests_ahead - len(unfinished))):
                request = self._request(work, run)
                unfinished[request] = work
                scheduler.add(request.sequences[0])
            if not unfinished:
                run.preemptions, run.touched_kv_blocks = scheduler.preemption.count, pool.num_touched
                return run
            chunks = scheduler.schedule()
            if swap_space is not None:
                run.seconds += sum(map(len, swap_space.take_moves())) / 2 * self._swap_seconds
            scheduler.take_copies()
            if not chunks:
                run.seconds += _IDLE
                continue
            run.steps += 1
            run.sequences += len(chunks)
            run.peak_kv_blocks = max(run.peak_kv_blocks, pool.num_used)
            shape = StepShape.of(chunks)
            run.tokens += shape.tokens
            seconds = self._step_seconds(shape)
            run.seconds += seconds
            scheduler.learn(scheduler.step, shape.tokens, seconds)
            run.decode_seconds += 0.0 if shape.pairs else seconds
            self._update(scheduler, chunks, unfinished, run)

    def _swap_pays(self, num_tokens: int, num_blocks: int) -> bool:
        return num_blocks * self._swap_seconds < num_tokens / _CHUNK * self._step_seconds(StepShape(_CHUNK, 0, 0, 0))

    def _request(self, work: Work, run: SimulatedRun) -> Request:
        samples = work.output_tokens
        max_tokens = max(samples) if work.max_tokens == 0 else work.max_tokens
        return self._intake.request(
            "",
            work.prompt_token_ids,
            SamplingParams(
                n=len(samples), temperature=0, max_tokens=max_tokens, detokenize=False, kv_policy=work.kv_policy
            ),
            prompt=None,
            stream=False,
            index=0,
            arrival_time=run.seconds,
            standing=work.standing,
        )

    @staticmethod
    def _update(scheduler: Scheduler, chunks: list[Chunk], unfinished: dict[Request, Work], run: SimulatedRun) -> None:
        """As the engine does with what a step has computed."""
        complete = [chunk.sequence for chunk in chunks if chunk.complete]
        scheduler.advance(chunks)
        for chunk in chunks:
            if chunk.sequence.num_computed == chunk.sequence.next_pruning:
                scheduler.pruner.prune(chunk.sequence)
        for sequence in complete:
            request = sequence.request
            samples = [sequence] if request.forked else list(request.sequences)
            for sample in samples:
                run.output_tokens += 1
                sample.tokens.append(-run.output_tokens)  # a token like no other
            if request.metrics.first_token_time is None:
                request.metrics.first_token_time = run.seconds
            lengths = unfinished[request].output_tokens
            ended = [sample for sample in samples if sample.num_output >= lengths[sample.index]]
            if not request.forked:
                request.forked = True
                scheduler.fork(sequence, [sample for sample in samples[1:] if sample not in ended])
            for sample in ended:
                sample.finish_reason = "stop"
                scheduler.finish(sample)
            if ended and request.finished:
                run.end(request.metrics, sum(lengths))
                del unfinished[request]
                request.sequences.clear()  # they refer to it
