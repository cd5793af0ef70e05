"""Decides which sequences run in the next step, how many tokens of each, and in which KV blocks."""

from __future__ import annotations

import time
from array import array
from collections.abc import Callable, Mapping

from pybatch.engine.scheduling.admission import Admission
from pybatch.engine.scheduling.block_pool import BlockPool, IntegrityError
from pybatch.engine.scheduling.block_tables import BlockTables
from pybatch.engine.scheduling.chunked_prefill import ChunkedPrefill
from pybatch.engine.scheduling.decoding import Decoding
from pybatch.engine.scheduling.draft_blocks import DraftBlocks
from pybatch.engine.scheduling.fair_queue import NO_WEIGHTS, PATIENCE
from pybatch.engine.scheduling.forecast import Forecast
from pybatch.engine.scheduling.joining import Joining
from pybatch.engine.scheduling.length_prediction import LengthPredictor
from pybatch.engine.scheduling.preemption import Preemption
from pybatch.engine.scheduling.prefix_store import PrefixStore
from pybatch.engine.scheduling.promises import Promises
from pybatch.engine.scheduling.running import Running
from pybatch.engine.scheduling.sequence import Sequence, Status
from pybatch.engine.scheduling.state_slots import StateSlots
from pybatch.engine.scheduling.step import Chunk, Step
from pybatch.engine.scheduling.swap_space import SwapSpace
from pybatch.engine.scheduling.table_pruner import TablePruner
from pybatch.engine.scheduling.target_budget import TargetBudget
from pybatch.engine.scheduling.waiting_queue import WaitingQueue


class Scheduler:
    """Fills each step up to one token budget: first sequences that decode (Decoding), then those still in their
    prompts, then waiting ones in order of arrival, as far as the policy lets them join (ChunkedPrefill, Joining).

    Of one priority, users are served fairly, and of one user the earliest deadline is first (see FairQueue). A lower
    `priority` comes before a higher one, among prompts and waiting sequences alike; the order above is that of equal
    ones.

    Prompts are promised their blocks when they join (Promises). For want of blocks or places those of the worst
    priorities are preempted (Preemption, which says why nobody waits for ever).

    predict_lengths: a sequence joins beside others only if the pool is expected to hold all of them until they end, by
    the lengths of outputs that have ended (see Forecast).

    The beams of a request are in the same steps. If one is preempted they all are, and wait as one: they join when
    there is room for all, the first computes the full blocks that they share, the others go on from there, and they
    decode again when each has but its last token left.

    states: of a model with recurrent ones. A sequence that runs has its slots for certain: what it may lack are blocks.

    Of its parts others use `preemption`, to take sequences back, `pruner`, and `drafts`, which finds blocks for them.

    clock: the time in seconds, by which requests' arrival_time is too; a simulator gives its own.
    """

    def __init__(
        self,
        pool: BlockPool,
        admission: Admission,
        *,
        block_size: int,
        max_num_seqs: int,
        max_num_batched_tokens: int,
        prefix_caching: bool,
        max_background_tokens: int,
        predict_lengths: bool = False,
        swap_space: SwapSpace | None = None,
        prefix_store: PrefixStore | None = None,
        states: StateSlots | None = None,
        user_weights: Mapping[str, float] = NO_WEIGHTS,
        targets: TargetBudget | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        max_seqs = min(max_num_seqs, max_num_batched_tokens)  # so that everyone can decode in each step
        if states is not None:
            max_seqs = min(max_seqs, states.max_num_seqs)
        self._lengths = LengthPredictor()
        forecast = Forecast(self._lengths, period=block_size) if predict_lengths else None
        self._pool = pool
        self._states = states
        self._clock = clock
        self._targets = targets or TargetBudget(max_num_batched_tokens)
        self._tables = tables = BlockTables(
            pool, block_size, prefix_caching=prefix_caching, prefix_store=prefix_store, states=states
        )
        self.swap_space = swap_space
        self.running = running = Running(max_seqs, block_size, forecast)
        self.waiting = waiting = WaitingQueue(by_length=admission.by_length, weights=user_weights)
        self.preemption = preemption = Preemption(tables, running, waiting, swap_space, clock)
        self.pruner = TablePruner(tables, running, preemption)
        promises = Promises(tables, running, preemption)
        self.drafts = DraftBlocks(tables, running, promises)
        self._decoding = Decoding(tables, running, waiting, preemption)
        joining = Joining(
            tables, running, waiting, promises, preemption, forecast=forecast, swap_space=swap_space, clock=clock
        )
        self._prefill = ChunkedPrefill(
            tables,
            running,
            waiting,
            promises,
            joining,
            admission=admission,
            targets=self._targets,
            max_num_batched_tokens=max_num_batched_tokens,
            max_background_tokens=max_background_tokens,
            clock=clock,
        )
        self.step = Step()  # the last one that was scheduled

    def add(self, sequence: Sequence) -> None:
        request = sequence.request
        if request.ttft_target is None:
            sequence.deadline = self._clock() + PATIENCE
        else:
            sequence.deadline = request.metrics.arrival_time + request.ttft_target
        self._targets.add(sequence)
        self.waiting.add(sequence)

    def schedule(self) -> list[Chunk]:
        """Returns the next step. The caller moves what swap_space.take_moves() says, copies what take_copies() says,
        computes the chunks and hands them to advance. If it raises, running.at is the cause."""
        self.running.next_step()
        self._pool.settle()
        self.step = Step()
        for sequence in [s for s in self.running.prefills if s.request.is_gathered]:
            self._part_beams(sequence)
        self._decoding.begin()
        preempted = self._decoding.grow()
        self._prefill.fill(self.step, preempted)
        chunks = self.running.decodes + self.step.chunks
        if self._states is not None:
            for chunk in chunks:
                self.running.at = chunk.sequence
                self._states.prepare(chunk.sequence)
        return chunks

    def take_copies(self) -> list[tuple[int, int]]:
        """The (source, destination) pairs of the blocks to copy before the step is computed."""
        return self._tables.take_copies()

    def advance(self, chunks: list[Chunk]) -> None:
        """These have been computed, with all their drafts."""
        for chunk in chunks:
            chunk.sequence.num_computed += chunk.num_tokens
        if self._states is not None:
            for chunk in chunks:
                self._states.advance(chunk.sequence)

    def learn(self, step: Step, tokens: int, seconds: float) -> None:
        """To be called when a step has been computed. tokens: in it, drafts too. seconds: that it has taken."""
        self._targets.observe(tokens - step.tokens, step, seconds)

    def unwritten_blocks(self, chunk: Chunk) -> array[int]:
        """The blocks that a chunk not computed yet is to write to. Later chunks of the step may share full ones."""
        sequence = chunk.sequence
        return sequence.blocks[sequence.num_cached // self._tables.block_size :]

    def retract(self, chunks: list[Chunk]) -> None:
        """Takes back chunks that were not computed: the prefix cache forgets the blocks that they were to fill, and the
        sequences wait like preempted ones."""
        for chunk in chunks:
            for block in self.unwritten_blocks(chunk):
                self._pool.forget(block)
        for chunk in reversed(chunks):
            if chunk.sequence.status is Status.RUNNING:  # not yet taken back with the other beams of its request
                self.preemption.requeue(chunk.sequence)

    def fork(self, parent: Sequence, children: list[Sequence]) -> list[tuple[int, int]]:
        """Lets children continue from the parent's computed tokens, in the same blocks.

        Each child gets a copy of the last block if it is not full, since it will write to it. Returns the (source,
        destination) pairs to copy. Children without room wait and are recomputed, like preempted sequences; so do all
        of a parent that has itself been preempted. If they are beams, all of their request's do, and nothing is to be
        copied.
        """
        return self._fork(parent, children, parent.num_computed)

    def _part_beams(self, first: Sequence) -> None:
        """Lets the beams that wait for a first one go on by themselves, once it has computed what they share."""
        request = first.request
        if first.num_computed >= request.num_shared:
            request.forked = True
            self._tables.promise(first, self._tables.num_missing(first, first.num_due))
            self._fork(first, request.sequences[1:], request.num_shared)

    def _fork(self, parent: Sequence, children: list[Sequence], num_tokens: int) -> list[tuple[int, int]]:
        """Of so many of the parent's tokens. Children may have known ones beyond these."""
        pairs: list[tuple[int, int]] = []
        places = self.running.free_places if parent.status is Status.RUNNING else 0
        for child in children:
            if places == 0 or self._pool.num_free < len(self._tables.partial(parent, num_tokens)):
                self.preemption.requeue(child)
                if child.request.beams is not None:
                    return []
                continue
            places -= 1
            pairs += self._tables.share(parent, child, num_tokens)
            self.running.join(child)
        return pairs

    def finish(self, sequence: Sequence) -> None:
        """Removes a sequence, whatever its state."""
        if sequence.finish_reason in ("stop", "length"):
            self._lengths.ended(sequence.request.params.max_tokens, sequence.num_output)
        if sequence.status is Status.RUNNING:
            if sequence.request.error is None:  # first, since it raises for a sequence that is broken
                self._tables.register_filled(sequence)
                self._tables.pin(sequence)
            self.running.stop(sequence)
        elif sequence in self.waiting:  # a sample waits for its prompt outside the queue
            self.waiting.remove(sequence)
        self._tables.release(sequence)
        if sequence.host_blocks and self.swap_space is not None:
            self.swap_space.drop(sequence)
        sequence.status = Status.FINISHED

    def check_integrity(self, *, under_way: bool = False) -> None:
        """Raises IntegrityError unless sequences and blocks agree. under_way: a step is scheduled, and not advanced."""
        owners = [*self.running, *self.waiting]
        if self._tables.num_promised != sum([sequence.num_promised for sequence in self.running.prefills]):
            raise IntegrityError("blocks are promised to others than those in their prompts")
        self._pool.check_integrity([sequence.blocks + sequence.held for sequence in owners])
        if self._states is not None:
            self._states.check_integrity(owners)
        for sequence in () if under_way else self.running:  # what one is about to fill others may share already
            last = sequence.num_cached // self._tables.block_size
            if any(self._pool.references(block) != 1 for block in sequence.blocks[last:]):
                raise IntegrityError(f"{sequence.request.request_id}: it shares a block that it will write to")
        self.waiting.check_integrity()
        self.running.check_integrity(self.running.now + (not under_way))
        if self.swap_space is not None:
            self.swap_space.check_integrity(owners)
