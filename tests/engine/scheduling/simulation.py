"""A scheduler over a simulated memory, where each slot holds the prefix it was computed for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from pybatch.engine import SamplingParams
from pybatch.engine.scheduling.admission import admission
from pybatch.engine.scheduling.block_pool import BlockPool
from pybatch.engine.scheduling.policies import as_policy
from pybatch.engine.scheduling.scheduler import Scheduler
from pybatch.engine.scheduling.sequence import NO_STATE, Request, Sequence
from pybatch.engine.scheduling.state_slots import StateSlots
from pybatch.engine.scheduling.step import Chunk
from pybatch.engine.standing import Standing

BLOCK = 4


@dataclass
class Simulation:
    """Runs a scheduler to the end. The 'model' answers with a number that follows from the tokens before it."""

    num_blocks: int = 32
    max_num_seqs: int = 4
    max_num_batched_tokens: int = 16
    policy: str = "continuous"
    prefix_caching: bool = True
    now: float = 1.0  # requests arrive at 0
    max_background_tokens: int = 1000
    predict_lengths: bool = False
    user_weights: dict[str, float] = field(default_factory=dict)
    make_pool: Callable[[int], BlockPool] = BlockPool
    num_states: int = 0  # 0: the model has none
    memory: dict[int, tuple[int, ...]] = field(default_factory=dict)
    batches: list[list[tuple[str, int]]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.pool = self.make_pool(self.num_blocks)
        self.states: StateSlots | None = None
        if self.num_states:
            self.states = StateSlots(
                BlockPool(self.num_states), BLOCK, max_num_seqs=self.max_num_seqs, keeps=self.prefix_caching
            )
        self.held_states: dict[int, tuple[int, ...]] = {}
        self.batching = batching = admission(as_policy(self.policy))
        self.scheduler = Scheduler(
            self.pool,
            batching,
            block_size=BLOCK,
            max_num_seqs=self.max_num_seqs,
            max_num_batched_tokens=self.max_num_batched_tokens,
            prefix_caching=self.prefix_caching,
            max_background_tokens=self.max_background_tokens,
            predict_lengths=self.predict_lengths,
            user_weights=self.user_weights,
            states=self.states,
            clock=lambda: self.now,
        )
        self.requests: list[Request] = []

    def add(
        self,
        prompt: list[int],
        max_tokens: int,
        n: int = 1,
        priority: int = 0,
        arrival_time: float = 0.0,
        **standing: Any,
    ) -> Request:
        request = Request(
            str(len(self.requests)),
            None,
            prompt,
            SamplingParams(n=n, max_tokens=max_tokens),
            max_total_tokens=len(prompt) + max_tokens,
            stop_ids=frozenset(),
            stream=False,
            arrival_time=arrival_time,
            standing=Standing(priority=priority, **standing),
        )
        request.sequences = [Sequence(request, i, i, None) for i in range(n)]
        self.requests.append(request)
        self.scheduler.add(request.sequences[0])
        return request

    def step(self, seconds: Callable[[list[Chunk]], float] | None = None) -> None:
        """seconds: that computing chunks takes; None leaves the clock as it is."""
        chunks = self.scheduler.schedule()
        if seconds is not None and chunks:
            took = seconds(chunks)
            self.scheduler.learn(self.scheduler.step, sum(chunk.num_tokens for chunk in chunks), took)
            self.now += took
        self.copy(self.scheduler.take_copies())
        assert sum(chunk.num_tokens for chunk in chunks) <= self.max_num_batched_tokens
        assert len(chunks) <= self.max_num_seqs
        assert len({chunk.sequence for chunk in chunks}) == len(chunks)
        self.batches.append([(chunk.sequence.request.request_id, chunk.num_tokens) for chunk in chunks])
        self.write(chunks)
        self.read(chunks)
        self.change_states([chunk for chunk in chunks if self.states is not None])
        ready = [chunk.sequence for chunk in chunks if chunk.complete]
        self.scheduler.advance(chunks)
        for sequence in ready:
            self.extend(sequence)
        assert len(self.scheduler.running) <= self.max_num_seqs
        assert getattr(self.batching, "_open", 0) >= 0, "more have joined than the policy let in"
        self.scheduler.check_integrity()

    def abort(self, request: Request) -> None:
        self.requests.remove(request)
        for sequence in request.sequences:
            self.scheduler.finish(sequence)

    def slots(self, sequence: Sequence, begin: int, end: int) -> list[int]:
        return [sequence.blocks[i // BLOCK] * BLOCK + i % BLOCK for i in range(begin, end)]

    def copy(self, pairs: list[tuple[int, int]]) -> None:
        sources, destinations = zip(*pairs, strict=True) if pairs else ((), ())
        assert len({*destinations}) == len(destinations)
        assert not {*sources} & {*destinations}
        for source, destination in pairs:
            for i in range(BLOCK):
                self.memory[destination * BLOCK + i] = self.memory.get(source * BLOCK + i, ())

    def write(self, chunks: list[Chunk]) -> None:
        written: set[int] = set()
        for chunk in chunks:
            begin = chunk.sequence.num_computed
            for i, slot in enumerate(self.slots(chunk.sequence, begin, begin + chunk.num_tokens), begin + 1):
                assert slot not in written, "two sequences write to one slot"
                written.add(slot)
                self.memory[slot] = tuple(chunk.sequence.tokens[:i])

    def read(self, chunks: list[Chunk]) -> None:
        for chunk in chunks:
            end = chunk.sequence.num_computed + chunk.num_tokens
            for i, slot in enumerate(self.slots(chunk.sequence, 0, end), 1):
                assert self.memory[slot] == tuple(chunk.sequence.tokens[:i]), "attention would read another's tokens"

    def change_states(self, chunks: list[Chunk]) -> None:
        written = {chunk.sequence.next_state for chunk in chunks}
        assert len(written) == len(chunks), "two sequences write to one slot"
        for chunk in chunks:
            sequence, before = chunk.sequence, chunk.sequence.num_computed
            assert (sequence.state == NO_STATE) == (before == 0)
            assert sequence.state not in written, "a state is lost before the step is known to have succeeded"
            if before:
                assert self.held_states[sequence.state] == tuple(sequence.tokens[:before]), "that is another's state"
        for chunk in chunks:
            end = chunk.sequence.num_computed + chunk.num_tokens
            self.held_states[chunk.sequence.next_state] = tuple(chunk.sequence.tokens[:end])

    def extend(self, sequence: Sequence) -> None:
        request = sequence.request
        samples = [sequence] if request.forked else request.sequences
        for sample in samples:
            sample.tokens.append(self.next_token(sample))
        if not request.forked:
            request.forked = True
            self.copy(self.scheduler.fork(sequence, samples[1:]))
        for sample in samples:
            if len(sample.tokens) == request.max_total_tokens:
                sample.finish_reason = "length"
                self.scheduler.finish(sample)

    @staticmethod
    def next_token(sequence: Sequence) -> int:
        return (sum(sequence.tokens) * 31 + len(sequence.tokens) + sequence.index) % 5

    def run(self) -> None:
        for _ in range(5000):
            if all(request.finished for request in self.requests):
                break
            self.step()
        assert all(request.finished for request in self.requests), "requests wait for ever"
        assert self.pool.num_used == 0
        assert self.states is None or self.states.pool.num_used == 0
        for request in self.requests:
            for sequence in request.sequences:
                expected = Sequence(request, sequence.index, 0, None)
                while len(expected.tokens) < request.max_total_tokens:
                    expected.tokens.append(self.next_token(expected))
                assert sequence.tokens == expected.tokens
