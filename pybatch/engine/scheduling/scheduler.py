"""Decides which sequences run in the next step, how many tokens of each, and in which KV blocks."""

from __future__ import annotations

import time
from array import array
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice, takewhile

from pybatch.engine.scheduling.block_pool import BlockKey, BlockPool, IntegrityError
from pybatch.engine.scheduling.policies import Load, Policy
from pybatch.engine.scheduling.sequence import Sequence, Status

_LOOK_AHEAD = 16  # sequences without room that are considered in a step
_SPARE_BLOCKS = 2  # per running sequence, which a sequence that passes another leaves free


@dataclass(slots=True, eq=False)
class Chunk:
    """A sequence's next num_tokens tokens, to be computed in one step.

    decodes: the sequence has one token left to compute. Such a chunk is the same object in every step, until its
    sequence ends or is preempted.
    """

    sequence: Sequence
    num_tokens: int
    decodes: bool = False

    @property
    def complete(self) -> bool:
        """Whether it reaches the sequence's last known token, so that the next one can be sampled."""
        return self.num_tokens == self.sequence.num_pending


def num_decodes(chunks: list[Chunk]) -> int:
    """The number of a step's chunks that decode; they come first."""
    count = len(chunks)
    while count and not chunks[count - 1].decodes:
        count -= 1
    return count


@dataclass(frozen=True, slots=True)
class Refusal:
    """The first in the queue could not join. Trying again is of no use until this many blocks are free, the next block
    of its prefix is cached, or another sequence joins (which may put cached blocks to use that both share)."""

    sequence: Sequence
    blocks: int
    next_key: BlockKey | None


class Scheduler:
    """Fills each step up to one token budget: first sequences that decode, then those still in their prompts, then
    waiting ones in order of arrival, as far as the policy lets them join.

    A sequence joins when there is room for all its known tokens. A prompt that needs more than is free takes its blocks
    chunk by chunk; one such prompt runs at a time. While it, or the first in the queue, has no room, later sequences
    that fit may pass it: at most max_num_seqs of them, after which nobody joins until it has its blocks. A preempted
    sequence is never passed.

    If a sequence that decodes needs a block and none is free, the one with the fewest computed tokens is preempted: it
    returns its blocks and goes to the front of the queue, to be recomputed. The one with the most is never preempted,
    so every sequence ends.

    clock: the time in seconds, by which requests' arrival_time is too; a simulator gives its own.
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
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.waiting: OrderedDict[Sequence, None] = OrderedDict()
        self.num_preemptions = 0
        self.at: Sequence | None = None  # the one being looked at: if scheduling raises, the cause
        self._pool = pool
        self._reserve = pool.num_blocks // 8  # blocks that a prompt which takes them by chunks leaves
        self._policy = policy
        self._block_size = block_size
        self._max_tokens = max_num_batched_tokens
        self._max_seqs = min(max_num_seqs, max_num_batched_tokens)  # so that everyone can decode in each step
        self._prefix_caching = prefix_caching
        self._clock = clock
        self._prefills: dict[Sequence, None] = {}  # in order of joining
        self._decodes: list[Chunk] = []
        self._rows: dict[Sequence, int] = {}  # a sequence's index in _decodes
        self._short: Sequence | None = None  # the one of _prefills that does not have all its blocks
        self._queued = 0  # the last number given to a sequence that came
        self._joined = 0  # and to one that joined
        self._returning = 0  # waiting sequences that have run before
        self._refusal: Refusal | None = None

    @property
    def running(self) -> list[Sequence]:
        return [*(chunk.sequence for chunk in self._decodes), *self._prefills]

    @property
    def num_running(self) -> int:
        return len(self._decodes) + len(self._prefills)

    def add(self, sequence: Sequence) -> None:
        sequence.queued = self._queued = self._queued + 1
        self.waiting[sequence] = None

    def schedule(self) -> list[Chunk]:
        """Returns the next step. The caller computes the chunks and adds their num_tokens to num_computed."""
        self.at = None
        preemptions = self.num_preemptions
        chunks = self._schedule_decodes()
        budget = self._max_tokens - len(chunks)
        chunks += (prefills := self._schedule_prefills(budget))
        if self.waiting and self.num_preemptions == preemptions:
            chunks += self._admit(budget - sum(chunk.num_tokens for chunk in prefills))
        return chunks

    def _schedule_decodes(self) -> list[Chunk]:
        for sequence in [s for s in self._prefills if s.num_pending == 1 and s.request.forked]:
            del self._prefills[sequence]
            self._start_decoding(sequence)
            if sequence is self._short:
                self._short = None
        size = self._block_size
        for sequence in [c.sequence for c in self._decodes if c.sequence.num_computed % size == 0]:
            self.at = sequence
            while sequence.status is Status.RUNNING and len(sequence.blocks) * size == sequence.num_computed:
                if self._pool.num_free:
                    sequence.blocks.append(self._pool.allocate())
                else:
                    self._preempt()
        if self._prefix_caching:
            for sequence in [c.sequence for c in self._decodes if c.sequence.num_computed % size == size - 1]:
                self.at = sequence
                self._register(sequence, sequence.num_computed + 1)
        return self._decodes.copy()

    def _schedule_prefills(self, budget: int) -> list[Chunk]:
        chunks = []
        for sequence in self._prefills:
            self.at = sequence
            count = min(sequence.num_pending, budget)
            if count == 0:
                break
            if sequence is self._short and not self._take_blocks(sequence, count):
                continue
            budget -= count
            self._register(sequence, sequence.num_computed + count)
            chunks.append(Chunk(sequence, count))
        return chunks

    def _admit(self, budget: int) -> list[Chunk]:
        chunks: list[Chunk] = []
        newcomers, full = 0, False
        self.at = None
        places = self._max_seqs - sum(map(self._places_needed, self._prefills)) - len(self._decodes)
        blocked: list[Sequence] = [] if self._short is None else [self._short]
        may_join = self._returning + self._policy.open_places(self._load())
        last = self._policy.last
        candidates = takewhile(lambda sequence: sequence.returning or sequence.queued <= last, self.waiting)
        for sequence in list(islice(candidates, min(may_join, places + _LOOK_AHEAD))):
            if budget == 0:
                break
            self.at = sequence
            if len(blocked) > _LOOK_AHEAD or (blocked and not self._may_be_passed(blocked[0])):
                full = True
                break
            if self._places_needed(sequence) > places or not self._join(sequence, budget, passing=bool(blocked)):
                blocked.append(sequence)
                full = True
                continue
            if blocked:
                blocked[0].num_passed += 1
            elif sequence is self._short:
                blocked.append(sequence)
            places -= self._places_needed(sequence)
            newcomers += not sequence.returning
            self._leave_queue(sequence)
            count = min(sequence.num_pending, budget)
            budget -= count
            self._register(sequence, sequence.num_computed + count)
            chunks.append(Chunk(sequence, count))
        self.at = None
        self._policy.joined(newcomers, full=full)
        return chunks

    def _may_be_passed(self, sequence: Sequence) -> bool:
        return not sequence.returning and sequence.num_passed < self._max_seqs

    def _join(self, sequence: Sequence, budget: int, *, passing: bool) -> bool:
        """Lets a waiting sequence run if there are blocks for all its tokens or, unless it passes another, a chunk."""
        if passing:
            if self._blocks_for(len(sequence.tokens)) + _SPARE_BLOCKS * self.num_running > self._pool.num_free:
                return False
        elif self._is_refused(sequence):
            return False
        free = self._pool.num_free
        cached: list[int] = []
        if self._prefix_caching and (sequence.request.params.prompt_logprobs is None):
            # The last token is always computed: its logits are wanted.
            full = (len(sequence.tokens) - 1) // self._block_size
            sequence.make_keys(full, self._block_size)
            cached = self._pool.match(islice(sequence.keys, full))
        sequence.blocks.extend(cached)
        sequence.num_computed = len(cached) * self._block_size
        whole = passing or sequence.returning
        if not self._take_blocks(sequence, min(sequence.num_pending, budget), whole=whole):
            missing = self._blocks_missing(sequence, sequence.num_pending)
            if not whole:
                for_chunk = self._blocks_missing(sequence, min(sequence.num_pending, budget))
                missing = min(missing, for_chunk + self._reserve)
            next_key = sequence.keys[len(cached)] if len(cached) < len(sequence.keys) else None
            self._refusal = Refusal(sequence, free - self._pool.num_free + missing, next_key)
            self._release(sequence, awaited=True)
            return False
        self._refusal = None
        if not whole:  # it was the first in the queue, and no preempted sequence is left there
            self._pool.await_none()
        sequence.num_registered = len(cached)
        self._prefills[sequence] = None
        self._start_running(sequence)
        metrics = sequence.request.metrics
        if metrics.first_scheduled_time is None:
            metrics.first_scheduled_time = self._clock()
            metrics.num_cached_tokens = sequence.num_computed
        return True

    def _is_refused(self, sequence: Sequence) -> bool:
        refusal = self._refusal
        return (
            refusal is not None
            and refusal.sequence is sequence
            and refusal.blocks + self.num_running > self._pool.num_free
            and not (refusal.next_key and self._pool.is_cached(refusal.next_key))
        )

    def _take_blocks(self, sequence: Sequence, count: int, *, whole: bool = False) -> bool:
        """Gives a sequence the blocks for all its known tokens or, if these are too many and `whole` is false, for its
        next `count` tokens. Returns whether it did."""
        # One spare block for each running sequence: else the next one to need a block would preempt another at once.
        available = self._pool.num_free - self.num_running + (sequence is self._short)
        missing = self._blocks_missing(sequence, sequence.num_pending)
        if missing <= available:
            if sequence is self._short:
                self._short = None
        else:
            missing = self._blocks_missing(sequence, count)
            if whole or missing > available - self._reserve:
                return False
            self._short = sequence
        sequence.blocks.extend(self._pool.allocate() for _ in range(missing))
        return True

    def _blocks_missing(self, sequence: Sequence, count: int) -> int:
        """The number of blocks that a sequence lacks for its next `count` tokens."""
        return self._blocks_for(sequence.num_computed + count) - len(sequence.blocks)

    def unwritten_blocks(self, chunk: Chunk) -> array[int]:
        """The blocks that a chunk not computed yet is to write to. Later chunks of the step may share full ones."""
        sequence = chunk.sequence
        return sequence.blocks[sequence.num_computed // self._block_size :]

    def retract(self, chunks: list[Chunk]) -> None:
        """Takes back chunks that were not computed: the prefix cache forgets the blocks that they were to fill, and the
        sequences wait like preempted ones."""
        for chunk in chunks:
            for block in self.unwritten_blocks(chunk):
                self._pool.forget(block)
        for chunk in reversed(chunks):
            self._stop_running(chunk.sequence)
            self._requeue(chunk.sequence)

    def fork(self, parent: Sequence, children: list[Sequence]) -> list[tuple[int, int]]:
        """Lets children continue from the parent's computed tokens, in the same blocks.

        Each child gets a copy of the last block if it is not full, since it will write to it. Returns the (source,
        destination) pairs to copy. Children without room wait and are recomputed, like preempted sequences.
        """
        pairs: list[tuple[int, int]] = []
        full = parent.num_computed // self._block_size
        partial = parent.blocks[full : self._blocks_for(parent.num_computed)]
        places = self._max_seqs - sum(map(self._places_needed, self._prefills)) - len(self._decodes)
        for child in children:
            if places == 0 or self._pool.num_free < len(partial):
                self._requeue(child)
                continue
            places -= 1
            for block in parent.blocks[:full]:
                self._pool.share(block)
            child.blocks.extend(parent.blocks[:full])
            for block in partial:
                child.blocks.append(self._pool.allocate())
                pairs.append((block, child.blocks[-1]))
            child.num_computed = parent.num_computed
            child.num_registered = min(parent.num_registered, full)
            self._start_running(child)
            self._start_decoding(child)
        return pairs

    def finish(self, sequence: Sequence) -> None:
        """Removes a sequence, whatever its state."""
        if sequence.status is Status.RUNNING:
            self._stop_running(sequence)
        elif sequence in self.waiting:  # a sample waits for its prompt outside the queue
            self._leave_queue(sequence)
        self._release(sequence)
        sequence.status = Status.FINISHED

    def check_integrity(self) -> None:
        """Raises IntegrityError unless sequences and blocks agree."""
        running = self.running
        self._pool.check_integrity([sequence.blocks for sequence in (*running, *self.waiting)])
        for sequence in running:
            last = sequence.num_computed // self._block_size
            if any(self._pool.references(block) != 1 for block in sequence.blocks[last:]):
                raise IntegrityError(f"{sequence.request.request_id}: it shares a block that it will write to")
        if self._returning != sum(sequence.returning for sequence in self.waiting):
            raise IntegrityError("the number of sequences that wait to return is wrong")
        if self._rows != {chunk.sequence: row for row, chunk in enumerate(self._decodes)}:
            raise IntegrityError("the rows of sequences that decode are wrong")

    def _load(self) -> Load:
        return Load(
            running=self.num_running,
            prefilling=len(self._prefills),
            waiting=len(self.waiting) - self._returning,
            returning=self._returning,
            longest_wait=self._clock() - next(iter(self.waiting)).request.metrics.arrival_time,
            queued=self._queued,
            max_num_seqs=self._max_seqs,
        )

    def _places_needed(self, sequence: Sequence) -> int:
        """One, or one per sample while the first of a request's samples computes the prompt for all."""
        return 1 if sequence.request.forked else min(sequence.request.params.n, self._max_seqs)

    def _blocks_for(self, num_tokens: int) -> int:
        return -(-num_tokens // self._block_size)

    def _register(self, sequence: Sequence, end: int) -> None:
        """Tells the prefix cache of the blocks that are full once the tokens before `end` are computed. Sequences that
        join in the same step may share them: each layer writes all keys and values before any attention reads them."""
        full = end // self._block_size
        if self._prefix_caching and full > sequence.num_registered:
            sequence.make_keys(full, self._block_size)
            for i in range(sequence.num_registered, full):
                self._pool.register(sequence.blocks[i], sequence.keys[i])
            sequence.num_registered = full

    def _start_running(self, sequence: Sequence) -> None:
        sequence.status = Status.RUNNING
        sequence.joined = self._joined = self._joined + 1

    def _start_decoding(self, sequence: Sequence) -> None:
        self._rows[sequence] = len(self._decodes)
        self._decodes.append(Chunk(sequence, 1, decodes=True))

    def _stop_running(self, sequence: Sequence) -> None:
        if sequence is self._short:
            self._short = None
        row = self._rows.pop(sequence, None)
        if row is None:
            del self._prefills[sequence]
            return
        last = self._decodes.pop()  # moves to the empty row, so that all others keep theirs
        if last.sequence is not sequence:
            self._decodes[row] = last
            self._rows[last.sequence] = row

    def _preempt(self) -> None:
        victim = min(self.running, key=lambda s: (s.num_computed, -s.joined))
        self._stop_running(victim)
        self._requeue(victim)
        victim.request.metrics.num_preemptions += 1
        self.num_preemptions += 1

    def _requeue(self, sequence: Sequence) -> None:
        self._release(sequence, awaited=True)
        sequence.status = Status.WAITING
        sequence.paused = self._clock()
        sequence.returning = True
        self._returning += 1
        self.waiting[sequence] = None
        self.waiting.move_to_end(sequence, last=False)

    def _leave_queue(self, sequence: Sequence) -> None:
        del self.waiting[sequence]
        self._returning -= sequence.returning
        sequence.returning = False

    def _release(self, sequence: Sequence, *, awaited: bool = False) -> None:
        self._pool.release(sequence.blocks, awaited=awaited)
        del sequence.blocks[:]
        sequence.num_computed = sequence.num_registered = 0
