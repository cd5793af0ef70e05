"""Who computes how many tokens in the next step, and in which KV blocks."""

from __future__ import annotations

import time
from collections import deque
from contextlib import suppress
from dataclasses import dataclass

from pybatch.engine.scheduling.block_pool import BlockPool, IntegrityError
from pybatch.engine.scheduling.policies import Load, Policy
from pybatch.engine.scheduling.sequence import Sequence, Status


@dataclass(slots=True)
class Chunk:
    """A sequence's next num_tokens tokens, to be computed in one step."""

    sequence: Sequence
    num_tokens: int

    @property
    def complete(self) -> bool:
        """It reaches the sequence's last known token, so the next one can be sampled."""
        return self.num_tokens == self.sequence.num_pending


class Scheduler:
    """One step, one token budget: running sequences that decode come first, then those still in their prompts, then
    the waiting in order of arrival, as far as the policy lets them join.

    A sequence gets the blocks for all its known tokens when it joins, and one more whenever decoding fills the last.
    Where none is free, the sequence with the fewest computed tokens is preempted: it gives its blocks back and goes to
    the front of the queue, to be computed again. The one with the most always goes on, so all of them end.
    """

    def __init__(
        self,
        pool: BlockPool,
        policy: Policy,
        *,
        block_size: int,
        max_num_seqs: int,
        max_num_batched_tokens: int,
        prefix_caching: bool,
    ) -> None:
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []
        self.num_preemptions = 0
        self._pool = pool
        self._policy = policy
        self._block_size = block_size
        self._max_tokens = max_num_batched_tokens
        self._max_seqs = min(max_num_seqs, max_num_batched_tokens)  # so that everyone can decode in each step
        self._prefix_caching = prefix_caching

    def add(self, sequence: Sequence) -> None:
        self.waiting.append(sequence)

    def schedule(self) -> list[Chunk]:
        preemptions = self.num_preemptions
        chunks, budget = self._continue_running()
        if self.num_preemptions == preemptions:
            chunks += self._admit_waiting(budget)
        return chunks

    def _continue_running(self) -> tuple[list[Chunk], int]:
        budget = self._max_tokens
        counts: dict[Sequence, int] = {}
        for sequence in sorted(self.running, key=lambda s: s.num_pending > 1):  # decodes first, else by age
            if budget == 0:
                break
            if sequence.status is not Status.RUNNING:
                continue
            while sequence.status is Status.RUNNING and not self._grow(sequence):
                budget += counts.pop(self._preempt(), 0)
            if sequence.status is Status.RUNNING:
                counts[sequence] = min(sequence.num_pending, budget)
                budget -= counts[sequence]
        chunks = [Chunk(sequence, count) for sequence, count in counts.items()]
        for chunk in chunks:
            self._register(chunk)
        return chunks, budget

    def _admit_waiting(self, budget: int) -> list[Chunk]:
        chunks: list[Chunk] = []
        if not self.waiting:
            return chunks
        places = self._policy.open_places(self._load())
        while self.waiting and budget > 0 and len(chunks) < places:
            sequence = self.waiting[0]
            if self._places_taken() + self._places_needed(sequence) > self._max_seqs or not self._join(sequence):
                break
            self.waiting.popleft()
            chunk = Chunk(sequence, min(sequence.num_pending, budget))
            budget -= chunk.num_tokens
            self._register(chunk)
            chunks.append(chunk)
        self._policy.joined(len(chunks), queue_empty=not self.waiting)
        return chunks

    def _join(self, sequence: Sequence) -> bool:
        """Gives a waiting sequence the blocks for all its tokens, if there are enough."""
        cached: list[int] = []
        if self._prefix_caching and (sequence.request.params.prompt_logprobs is None):
            # The last token is always computed: its logits are wanted.
            full = (len(sequence.tokens) - 1) // self._block_size
            cached = self._pool.match(sequence.full_block_keys(full, self._block_size))
        missing = self._blocks_for(len(sequence.tokens)) - len(cached)
        # A spare block for each who runs: else the next to need one would throw somebody out at once.
        if missing + len(self.running) > self._pool.num_free:
            self._pool.release(cached)
            return False
        sequence.blocks.extend(cached)
        sequence.blocks.extend(self._pool.allocate() for _ in range(missing))
        sequence.num_registered = len(cached)
        sequence.num_computed = len(cached) * self._block_size
        sequence.status = Status.RUNNING
        self.running.append(sequence)
        metrics = sequence.request.metrics
        if metrics.first_scheduled_time is None:
            metrics.first_scheduled_time = time.perf_counter()
            metrics.num_cached_tokens = sequence.num_computed
        return True

    def fork(self, parent: Sequence, children: list[Sequence]) -> list[tuple[int, int]]:
        """Lets children run on from the parent's computed tokens, over the same blocks.

        The last block, if it is not full, each child will write to: it gets a copy. Returns the (source, destination)
        pairs to copy. Children for whom there is no room wait, and are computed like preempted sequences.
        """
        pairs: list[tuple[int, int]] = []
        full = parent.num_computed // self._block_size
        partial = parent.blocks[full : self._blocks_for(parent.num_computed)]
        for child in children:
            if self._places_taken() >= self._max_seqs or self._pool.num_free < len(partial):
                self._requeue(child)
                continue
            for block in parent.blocks[:full]:
                self._pool.share(block)
            child.blocks.extend(parent.blocks[:full])
            for block in partial:
                child.blocks.append(self._pool.allocate())
                pairs.append((block, child.blocks[-1]))
            child.num_computed = parent.num_computed
            child.num_registered = min(parent.num_registered, full)
            child.status = Status.RUNNING
            self.running.append(child)
        return pairs

    def finish(self, sequence: Sequence) -> None:
        """Takes a sequence out, whatever its state."""
        if sequence.status is Status.RUNNING:
            self.running.remove(sequence)
        else:
            with suppress(ValueError):  # a sample waits for its prompt outside the queue
                self.waiting.remove(sequence)
        self._release(sequence)
        sequence.status = Status.FINISHED

    def check_integrity(self) -> None:
        """IntegrityError unless sequences and blocks agree."""
        self._pool.check_integrity([sequence.blocks for sequence in (*self.running, *self.waiting)])
        for sequence in self.running:
            last = sequence.num_computed // self._block_size
            if any(self._pool.references(block) != 1 for block in sequence.blocks[last:]):
                raise IntegrityError(f"{sequence.request.request_id}: it shares a block that it will write to")

    def _load(self) -> Load:
        return Load(
            running=len(self.running),
            prefilling=sum(sequence.num_pending > 1 for sequence in self.running),
            waiting=len(self.waiting),
            longest_wait=time.perf_counter() - self.waiting[0].request.metrics.arrival_time,
            max_num_seqs=self._max_seqs,
        )

    def _places_needed(self, sequence: Sequence) -> int:
        """One, or one a sample while the first of a request's samples computes the prompt for all."""
        return 1 if sequence.request.forked else min(sequence.request.params.n, self._max_seqs)

    def _places_taken(self) -> int:
        return sum(map(self._places_needed, self.running))

    def _blocks_for(self, num_tokens: int) -> int:
        return -(-num_tokens // self._block_size)

    def _grow(self, sequence: Sequence) -> bool:
        if len(sequence.blocks) < self._blocks_for(len(sequence.tokens)):
            if self._pool.num_free == 0:
                return False
            sequence.blocks.append(self._pool.allocate())
        return True

    def _register(self, chunk: Chunk) -> None:
        """Tells the prefix cache of the blocks that this step fills. Sequences that join in the same step may already
        share them: in each layer all keys and values are written before any attention reads them."""
        sequence = chunk.sequence
        full = (sequence.num_computed + chunk.num_tokens) // self._block_size
        if self._prefix_caching and full > sequence.num_registered:
            keys = sequence.full_block_keys(full, self._block_size)
            for i in range(sequence.num_registered, full):
                self._pool.register(sequence.blocks[i], keys[i])
            sequence.num_registered = full

    def _preempt(self) -> Sequence:
        victim = min(reversed(self.running), key=lambda s: s.num_computed)  # of equals, the last to join
        self.running.remove(victim)
        self._requeue(victim)
        victim.request.metrics.num_preemptions += 1
        self.num_preemptions += 1
        return victim

    def _requeue(self, sequence: Sequence) -> None:
        self._release(sequence)
        sequence.status = Status.WAITING
        self.waiting.appendleft(sequence)
        self._policy.preempted()

    def _release(self, sequence: Sequence) -> None:
        self._pool.release(sequence.blocks)
        del sequence.blocks[:]
        sequence.num_computed = sequence.num_registered = 0
