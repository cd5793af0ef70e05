"""Decides which sequences run in the next step, how many tokens of each, and in which KV blocks."""

from __future__ import annotations

import math
import time
from array import array
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import islice

from pybatch.engine.scheduling.admission import Admission, Load
from pybatch.engine.scheduling.block_pool import BlockKey, BlockPool, IntegrityError
from pybatch.engine.scheduling.block_tables import BlockTables
from pybatch.engine.scheduling.fair_queue import NO_WEIGHTS, OUTPUT_WEIGHT, PATIENCE
from pybatch.engine.scheduling.forecast import Forecast
from pybatch.engine.scheduling.length_prediction import LengthPredictor
from pybatch.engine.scheduling.prefix_store import PrefixStore
from pybatch.engine.scheduling.pruning import Gathered, Turned
from pybatch.engine.scheduling.running import Running
from pybatch.engine.scheduling.sequence import Request, Sequence, Status
from pybatch.engine.scheduling.state_slots import StateSlots
from pybatch.engine.scheduling.step import Chunk, Step
from pybatch.engine.scheduling.swap_space import SwapSpace
from pybatch.engine.scheduling.table_pruner import TablePruner
from pybatch.engine.scheduling.target_budget import TargetBudget
from pybatch.engine.scheduling.waiting_queue import WaitingQueue
from pybatch.engine.standing import BACKGROUND

_LOOK_AHEAD = 16  # sequences without room that are considered in a step
_MOST_EXPECTED = 0.9  # of the pool, since outputs may turn out longer than expected
_SPARE_BLOCKS = 2  # per running sequence, which a sequence that passes another leaves free


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

    Of one priority, users are served fairly, and of one user the earliest deadline is first (see FairQueue).

    A lower `priority` comes before a higher one, among prompts and waiting sequences alike; the order above is that of
    equal ones. A waiting sequence without a place or blocks preempts running ones of worse priorities if it can join
    then, the worst first and of these that which wastes least. While it waits none of a worse priority joins, so that
    what is preempted does not come back to be preempted again.

    A step's prompts are as many tokens as TPOT targets of sequences that decode leave time for, and those that are in
    danger of missing their TTFT targets come before others of their priority (see TargetBudget).

    Prompts of priority BACKGROUND or more fill a step's prompt tokens up to max_background_tokens only. So an
    interactive sequence, if others like it leave it room, is in the next step after it has come, and has waited for at
    most one step of max_num_seqs tokens that decode and max_background_tokens of prompts, or as many as interactive
    prompts have. Its prompt then gets in each step what the tokens that decode leave of the budget.

    A prompt takes its blocks chunk by chunk. It joins when there is room for all its known tokens: the blocks for these
    are promised to it, so that nobody joins who would need them, and stay free or cached until it takes them. Sequences
    that decode may take them before: then it waits for others to end. A prompt that needs more than is free joins
    without a promise, and takes what is beyond all promises and a reserve; one such prompt runs at a time. While it, or
    the first in the queue, has no room, later sequences that fit may pass it: at most max_num_seqs of them, after which
    nobody joins until it has its blocks. A preempted sequence is never passed.

    If a sequence that decodes needs a block and none is free, one of the worst priority is preempted, that which wastes
    least: it returns its blocks and goes to the front of its priority's queue, to be recomputed. Nobody waits for ever:
    of those that need a block in a step, the last that still runs has it and gets a token, which no later preemption
    takes back (a sequence keeps its tokens, and loses what was computed of them). So each step in which others are
    preempted for want of blocks brings a token, and all outputs together are bounded. A sequence that is preempted for
    itself takes nobody's blocks. What joins again is promised room for all its known tokens, and so it gets one more
    unless it makes way for another's. Prompts do not wait for each other: what they hold and were promised fits in the
    pool, but for what sequences that decode have taken since. So every sequence ends unless better ones never cease.

    predict_lengths: a sequence joins beside others only if the pool is expected to hold all of them until they end, by
    the lengths of outputs that have ended (see Forecast). Then hardly any is preempted.

    The beams of a request are in the same steps. If one is preempted they all are, and wait as one: they join when
    there is room for all, the first computes the full blocks that they share, the others go on from there, and they
    decode again when each has but its last token left.

    states: of a model with recurrent ones. A sequence that runs has its slots for certain: what it may lack are blocks.

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
        self._lengths = LengthPredictor()
        self._forecast = Forecast(self._lengths, period=block_size) if predict_lengths else None
        max_seqs = min(max_num_seqs, max_num_batched_tokens)  # so that everyone can decode in each step
        if states is not None:
            max_seqs = min(max_seqs, states.max_num_seqs)
        self.running = Running(max_seqs, block_size, self._forecast)
        self.waiting = WaitingQueue(by_length=admission.by_length, weights=user_weights)
        self.swap_space = swap_space
        self.num_preemptions = 0
        self.at: Sequence | None = None  # the one being looked at: if scheduling raises, the cause
        self._pool = pool
        self._states = states
        self._tables = BlockTables(
            pool, block_size, prefix_caching=prefix_caching, prefix_store=prefix_store, states=states
        )
        self._pruner = TablePruner(self._tables, self.running, self._free_for)
        self._reserve = pool.num_blocks // 8  # blocks that a prompt without a promise leaves
        self._admission = admission
        self._block_size = block_size
        self._max_tokens = max_num_batched_tokens
        self._max_background = max_background_tokens
        self._targets = targets or TargetBudget(max_num_batched_tokens)
        self.step = Step()  # the last one that was scheduled
        self._clock = clock
        self._short: Sequence | None = None  # the prompt that runs without a promise
        self._several_users = False
        self._queued = 0  # the last number given to a sequence that came
        self._refusal: Refusal | None = None

    def add(self, sequence: Sequence) -> None:
        request = sequence.request
        if request.ttft_target is None:
            sequence.deadline = self._clock() + PATIENCE
        else:
            sequence.deadline = request.metrics.arrival_time + request.ttft_target
        self._several_users = self._several_users or request.user is not None
        self._targets.add(sequence)
        sequence.queued = self._queued = self._queued + 1
        self.waiting.add(sequence)

    def schedule(self) -> list[Chunk]:
        """Returns the next step. The caller moves what swap_space.take_moves() says, copies what take_copies() says,
        computes the chunks and hands them to advance."""
        self.at = None
        self.running.next_step()
        self._pool.settle()
        self.step = step = Step()
        preempted = self._grow_decodes()
        self._targets.begin(len(self.running.decodes), self.running.paced, self._clock())
        if preempted is not None:  # only better ones may join
            self._fill(step, -math.inf, preempted)
            step.closed = True
        self._fill(step, -math.inf if preempted is None else preempted, math.inf)
        if step.open_places is not None:
            self._admission.joined(step.newcomers, full=step.full)
        chunks = self.running.decodes + step.chunks
        if self._states is not None:
            for chunk in chunks:
                self._states.prepare(chunk.sequence)
        return chunks

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

    def take_copies(self) -> list[tuple[int, int]]:
        """The (source, destination) pairs of the blocks to copy before the step is computed."""
        return self._tables.take_copies()

    def _grow_decodes(self) -> int | None:
        """Gives those that decode the blocks that they need. Returns the best priority that was preempted for it."""
        for sequence in [s for s in self.running.prefills if s.request.beams and not s.request.forked]:
            self._part_beams(sequence)
        for sequence in [s for s in self.running.prefills if s.request.forked and s.num_output and self._can_decode(s)]:
            self._tables.promise(sequence, 0)
            self.running.decode(sequence)
            if sequence is self._short:
                self._short = None
        size = self._block_size
        preempted: int | None = None
        due = self.running.turns.due(self.running.now)
        if self._several_users:
            for sequence in due:
                self.waiting.charge(sequence, OUTPUT_WEIGHT * size)
        lacking = [each for each in due if len(each.blocks) * size == each.num_cached]
        if len(lacking) <= self._pool.num_free:
            for sequence, block in zip(lacking, self._pool.allocate_many(len(lacking)), strict=True):
                sequence.blocks.append(block)
            return None
        for sequence in lacking:
            self.at = sequence
            while sequence.status is Status.RUNNING and len(sequence.blocks) * size == sequence.num_cached:
                if self._pool.num_free:
                    sequence.blocks.append(self._pool.allocate())
                else:
                    victim = self._victim()
                    preempted = victim.priority  # never a worse one than before
                    self._preempt(victim)
        return preempted

    def _part_beams(self, first: Sequence) -> None:
        """Lets the beams that wait for a first one go on by themselves, once it has computed what they share."""
        beams, shared = first.request.sequences, first.request.num_shared // self._block_size * self._block_size
        if len(beams) > 1 and first.num_computed >= shared:
            first.request.forked = True
            self._tables.promise(first, self._tables.num_missing(first, first.num_due))
            self._fork(first, beams[1:], shared)

    def _can_decode(self, sequence: Sequence) -> bool:
        together = [sequence] if sequence.request.beams is None else sequence.request.sequences
        return all(each.num_pending == 1 for each in together)

    def _fill(self, step: Step, first: float, below: float) -> None:
        """Takes prompts under way of priorities from `first` to below `below` into a step, and in front of each the
        waiting sequences of better priorities than its own."""
        running = [sequence for sequence in self.running.prefills if first <= sequence.priority < below]
        danger = {sequence for sequence in running if self._targets.in_danger(sequence)}
        others = {sequence.priority for sequence in running if sequence not in danger}
        for sequence in sorted(running, key=lambda each: (each.priority, each not in danger)):
            self._admit(step, sequence.priority)
            if sequence.priority in others:
                step.kept = self._targets.kept_for_others
            if sequence not in danger:
                self._admit(step, sequence.priority + 1, in_danger=True)
                step.kept = 0
            self.at = sequence
            if sequence.status is Status.RUNNING and not self._go_on(step, sequence) and sequence not in danger:
                break
            step.kept = 0
        self._admit(step, below)

    def _go_on(self, step: Step, sequence: Sequence) -> bool:
        """Takes the next chunk of a prompt into the step. Returns whether the step has tokens left for it."""
        wanted = self._num_wanted(sequence)
        count = min(wanted, self._budget(step, sequence))
        if self._states is not None:
            count = self._states.cut(sequence, count)
        if count == 0:
            return wanted == 0
        while not self._take_blocks(sequence, count):
            if self.running.num_worse(sequence.priority) == 0:
                return True
            self._preempt(self._victim())
        step.tokens += count
        step.pairs += count * sequence.num_cached + count * (count + 1) // 2
        self._tables.register(sequence, sequence.num_computed + count)
        step.chunks.append(Chunk(sequence, count))
        return True

    def _num_wanted(self, sequence: Sequence) -> int:
        """How many more tokens of a prompt are to be computed: the last of several beams' are for all in one step, and
        those behind the next pruning come after it."""
        return sequence.num_due - (sequence.request.beams is not None and len(sequence.request.sequences) > 1)

    def _budget(self, step: Step, sequence: Sequence) -> int:
        """How many prompt tokens of the sequence the step has room for."""
        left = max(0, self._max_tokens - len(self.running.decodes) - step.tokens - step.kept)
        if sequence.priority >= BACKGROUND:
            left = max(0, min(left, self._max_background - step.tokens))
        return self._targets.tokens(sequence, step, left)

    def _admit(self, step: Step, below: float, *, in_danger: bool = False) -> None:
        """Lets waiting sequences of priorities below `below` join. in_danger: the first ones that are."""
        if step.closed or not self.waiting or self.waiting.best >= below:
            return
        if in_danger and not (self._targets.known and self._targets.in_danger(self.waiting.first)):
            return
        self.at = None
        if step.open_places is None:
            step.open_places = self._admission.open_places(self._load())
        places = self.running.free_places
        possible = places + self.running.num_worse(self.waiting.best)
        blocked: list[Sequence] = []
        candidates = self.waiting.candidates(
            below=below, newcomers=step.open_places, last=self._admission.last, length=self._admission.length
        )
        for sequence in list(islice(candidates, possible + _LOOK_AHEAD if possible else 1)):
            if in_danger and not self._targets.in_danger(sequence):
                break
            budget = self._budget(step, sequence)
            if budget == 0:
                step.closed = True
                break
            self.at = sequence
            if not blocked and self._short is not None and self._short.priority <= sequence.priority:
                blocked.append(self._short)
            if len(blocked) > _LOOK_AHEAD or (blocked and not self._may_pass(sequence, blocked[0])):
                step.full = True
                break
            step.open_places -= not sequence.returning
            needed, passing = self.running.places_needed(sequence), bool(blocked)
            if needed > places or not self._join(sequence, budget, passing=passing):
                if not self._make_room(sequence, budget, passing=passing):
                    blocked.append(sequence)
                    step.full = True
                    continue
                places = self.running.free_places + needed
            if passing:
                blocked[0].num_passed += 1
            places -= needed
            if not sequence.returning:
                step.newcomers += 1
                self.waiting.charge(sequence, sequence.num_pending)
            self.waiting.remove(sequence)
            self._go_on(step, sequence)
        step.closed = step.closed or bool(blocked)
        self.at = None

    def _may_pass(self, sequence: Sequence, waiting: Sequence) -> bool:
        """Whether one may join before another that lacks room."""
        return sequence.priority == waiting.priority and self._may_be_passed(waiting)

    def _may_be_passed(self, sequence: Sequence) -> bool:
        return not sequence.returning and sequence.num_passed < self.running.max_seqs

    def _join(self, sequence: Sequence, budget: int, *, passing: bool) -> bool:
        """Lets a waiting sequence run if there are blocks for all its tokens or, unless it passes another, a chunk."""
        if not self._is_expected_to_fit(sequence):
            return False
        if passing:
            spared = (_SPARE_BLOCKS - 1) * len(self.running)
            if self._tables.blocks_for(len(sequence.tokens)) + spared > self._num_spare_blocks:
                return False
        elif self._is_refused(sequence):
            return False
        free = self._pool.num_free
        self._tables.match(sequence)
        num_cached = len(sequence.blocks)
        swapped = len(sequence.host_blocks) > 0
        elsewhere = max(0, sequence.num_kept - sequence.num_computed) if swapped else self._tables.num_stored(sequence)
        count = min(sequence.num_due, elsewhere + budget)
        if not self._promise(sequence, count, whole=passing or sequence.returning or self._short is not None):
            missing = self._num_unpromised(sequence)
            if not (passing or sequence.returning):
                missing = min(missing, self._tables.num_missing(sequence, count) + self._reserve)
            next_key = sequence.keys[num_cached] if num_cached < len(sequence.keys) else None
            self._refusal = Refusal(sequence, free - self._pool.num_free + missing, next_key)
            self._tables.release(sequence, awaited=True)
            return False
        self._refusal = None
        if not (passing or self.waiting.num_returning):  # it was the first in the queue
            self._pool.await_none()
        self._tables.extend(sequence, self._tables.num_missing(sequence, elsewhere + 1))
        if swapped and self.swap_space is not None:
            self.swap_space.restore(sequence, self._block_size)
        else:
            self._tables.load_prefix(sequence, elsewhere)
            self._tables.copy_beginning(sequence)
        self.running.join(sequence)
        metrics = sequence.request.metrics
        if metrics.first_scheduled_time is None:
            metrics.first_scheduled_time = self._clock()
            metrics.num_cached_tokens = sequence.num_computed
        return True

    def _is_expected_to_fit(self, sequence: Sequence) -> bool:
        """Whether the pool holds it and all that run until each has ended, as far as can be told. Not asked of one that
        runs alone, or before worse ones, which would give way."""
        if self._forecast is None or len(self.running) == 0 or self.running.num_worse(sequence.priority):
            return True
        shared = self._pool.num_references - self._pool.num_used
        expected = self._forecast.peak_with(sequence) - shared * self._block_size
        return expected <= _MOST_EXPECTED * (self._pool.num_blocks - self._pool.num_pinned) * self._block_size

    def _make_room(self, sequence: Sequence, budget: int, *, passing: bool) -> bool:
        """Lets a waiting sequence join in the place of running ones of worse priorities, if that gives it room."""
        needed = self.running.places_needed(sequence)
        while self._has_room_among_worse(sequence, passing=passing):
            self._preempt(self._victim())
            if needed <= self.running.free_places and self._join(sequence, budget, passing=passing):
                return True
        return False

    def _has_room_among_worse(self, sequence: Sequence, *, passing: bool) -> bool:
        """Whether it could join, for all that is known of it, if no sequence of a worse priority ran."""
        if self.running.num_worse(sequence.priority) == 0:
            return False
        worse = [each for each in self.running if each.priority > sequence.priority]
        places = self.running.free_places + sum(map(self.running.places_needed, worse))
        if self.running.places_needed(sequence) > places:
            return False
        others = len(self.running) - len(worse)
        free = self._pool.num_free + self._pool.num_freed_by([each.blocks + each.held for each in worse])
        free -= self._tables.num_promised - sum([each.num_promised for each in worse])
        if passing:
            return self._tables.blocks_for(len(sequence.tokens)) + _SPARE_BLOCKS * others <= free
        refusal = self._refusal
        return refusal is None or refusal.sequence is not sequence or refusal.blocks + others <= free

    def _is_refused(self, sequence: Sequence) -> bool:
        refusal = self._refusal
        return (
            refusal is not None
            and refusal.sequence is sequence
            and refusal.blocks > self._num_spare_blocks
            and not (refusal.next_key and self._pool.is_cached(refusal.next_key))
        )

    @property
    def _num_spare_blocks(self) -> int:
        """Those that may be promised, and one more for each running sequence is left: else the next one to need a block
        would preempt another at once."""
        return self._pool.num_free - self._tables.num_promised - len(self.running)

    def _promise(self, sequence: Sequence, count: int, *, whole: bool = False) -> bool:
        """Promises a sequence the blocks for all its known tokens before its next pruning. If these are too many and
        `whole` is false it may have those for its next `count` tokens without a promise, if these are free. Returns
        whether it has either."""
        spare = self._num_spare_blocks + (sequence is self._short)
        missing = self._num_unpromised(sequence)
        if missing <= spare:
            self._tables.promise(sequence, missing)
            if sequence is self._short:
                self._short = None
            return True
        if whole or self._tables.num_missing(sequence, count) > spare - self._reserve:
            return False
        self._short = sequence
        return True

    def _num_unpromised(self, sequence: Sequence) -> int:
        """How many blocks one without a promise lacks, with the beams that wait for it."""
        missing, request = self._tables.num_missing(sequence, sequence.num_due), sequence.request
        if request.beams is not None and not request.forked:
            shared = request.num_shared // self._block_size
            missing += sum([self._tables.blocks_for(len(beam.tokens) - 1) - shared for beam in request.sequences[1:]])
        return missing

    def _take_blocks(self, sequence: Sequence, count: int) -> bool:
        """Gives a prompt the blocks for its next `count` tokens. Returns whether there are so many for it."""
        if sequence is self._short and not self._promise(sequence, count):
            return False
        missing = self._tables.num_missing(sequence, count)
        if missing > self._pool.num_free:
            return False
        self._tables.extend(sequence, missing)
        return True

    def add_drafts(self, chunk: Chunk, drafts: Iterable[int]) -> None:
        """Lets a chunk that decodes compute drafts of the next tokens too: as many as have room in the blocks that are
        free beyond one for each running sequence, so that nobody is preempted for them, before the next pruning."""
        sequence = chunk.sequence
        blocks = len(sequence.blocks) + max(0, self._num_spare_blocks)
        room = min(blocks * self._block_size - sequence.num_cached, sequence.next_pruning - sequence.num_computed)
        taken = () if sequence.mass_rows else tuple(islice(drafts, room - 1))
        self._tables.extend(sequence, self._tables.num_missing(sequence, 1 + len(taken)))
        chunk.drafts, chunk.num_tokens = taken, 1 + len(taken)

    def settle_drafts(self, chunk: Chunk) -> None:
        """To be called when the drafts that proved right are tokens of the sequence, and counted in num_computed:
        returns the blocks that were for the others."""
        chunk.drafts, chunk.num_tokens = (), 1
        sequence = chunk.sequence
        if sequence.status is Status.RUNNING:
            self.running.replan(sequence)
            self._tables.trim(sequence)

    def unwritten_blocks(self, chunk: Chunk) -> array[int]:
        """The blocks that a chunk not computed yet is to write to. Later chunks of the step may share full ones."""
        sequence = chunk.sequence
        return sequence.blocks[sequence.num_cached // self._block_size :]

    def retract(self, chunks: list[Chunk]) -> None:
        """Takes back chunks that were not computed: the prefix cache forgets the blocks that they were to fill, and the
        sequences wait like preempted ones."""
        for chunk in chunks:
            for block in self.unwritten_blocks(chunk):
                self._pool.forget(block)
        for chunk in reversed(chunks):
            if chunk.sequence.status is Status.RUNNING:  # not yet taken back with the other beams of its request
                self.requeue(chunk.sequence)

    def fork(self, parent: Sequence, children: list[Sequence]) -> list[tuple[int, int]]:
        """Lets children continue from the parent's computed tokens, in the same blocks.

        Each child gets a copy of the last block if it is not full, since it will write to it. Returns the (source,
        destination) pairs to copy. Children without room wait and are recomputed, like preempted sequences; so do all
        of a parent that has itself been preempted. If they are beams, all of their request's do, and nothing is to be
        copied.
        """
        return self._fork(parent, children, parent.num_computed)

    def _fork(self, parent: Sequence, children: list[Sequence], num_tokens: int) -> list[tuple[int, int]]:
        """Of so many of the parent's tokens. Children may have known ones beyond these."""
        pairs: list[tuple[int, int]] = []
        places = self.running.free_places if parent.status is Status.RUNNING else 0
        for child in children:
            if places == 0 or self._pool.num_free < len(self._tables.partial(parent, num_tokens)):
                self.requeue(child)
                if child.request.beams is not None:
                    return []
                continue
            places -= 1
            pairs += self._tables.share(parent, child, num_tokens)
            self.running.join(child)
        return pairs

    def prune(self, sequence: Sequence) -> Turned | Gathered | None:
        """Gives a sequence that has come to next_pruning the blocks that it goes on with; those that it does not need
        any more are free. Returns what is to be done to their contents, before anything else is done to any block; None
        if all others have been preempted for want of room, and then it too."""
        if sequence is self._short:
            self._short = None
        return self._pruner.prune(sequence)

    def _free_for(self, sequence: Sequence, num_needed: Callable[[], int]) -> bool:
        """Preempts others until as many blocks are free as a sequence needs, which may become fewer as others do not
        share its own any more. Returns whether it still runs itself."""
        while self._pool.num_free < num_needed():
            victim = self._victim()
            self._preempt(victim, moves=False)
            if victim is sequence:
                return False
        return True

    def finish(self, sequence: Sequence) -> None:
        """Removes a sequence, whatever its state."""
        if sequence.finish_reason in ("stop", "length"):
            self._lengths.ended(sequence.request.params.max_tokens, sequence.num_output)
        if sequence.status is Status.RUNNING:
            if sequence.request.error is None:  # first, since it raises for a sequence that is broken
                self._tables.register_filled(sequence)
                self._tables.pin(sequence)
            self._stop(sequence)
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
            last = sequence.num_cached // self._block_size
            if any(self._pool.references(block) != 1 for block in sequence.blocks[last:]):
                raise IntegrityError(f"{sequence.request.request_id}: it shares a block that it will write to")
        self.waiting.check_integrity()
        self.running.check_integrity(self.running.now + (not under_way))
        if self.swap_space is not None:
            self.swap_space.check_integrity((*self.running, *self.waiting))

    def _load(self) -> Load:
        return Load(
            running=len(self.running),
            prefilling=len(self.running.prefills),
            waiting=len(self.waiting) - self.waiting.num_returning,
            returning=self.waiting.num_returning,
            first_length=len(self.waiting.first.tokens),
            longest_wait=self._clock() - self.waiting.oldest.request.metrics.arrival_time,
            queued=self._queued,
            max_num_seqs=self.running.max_seqs,
        )

    def _stop(self, sequence: Sequence) -> None:
        if sequence is self._short:
            self._short = None
        self.running.stop(sequence)

    def _victim(self) -> Sequence:
        """The running sequence that is preempted next."""
        return min(self.running, key=lambda each: (-each.priority, *self._tables.waste(each), -each.joined))

    def _preempt(self, victim: Sequence, *, moves: bool = True) -> None:
        """moves: what its blocks hold may be moved to the host: they are not written before the next step."""
        at = self.at
        for self.at in [victim] if victim.request.beams is None else victim.request.sequences:
            self._tables.register_filled(self.at)
        self.at = at
        moves = moves and victim.request.beams is None and not self._tables.awaits_copy(victim)
        if self.swap_space is not None and moves:
            self.swap_space.keep(victim, self._block_size)
        self.requeue(victim)
        victim.request.metrics.num_preemptions += 1
        self.num_preemptions += 1

    def withdraw(self, request: Request) -> bool:
        """Takes a request's beams out of the queue if they wait there as one. Returns whether they did; then they are
        to be requeued."""
        first = request.sequences[0]
        if first.status is not Status.WAITING:
            return False
        self.waiting.remove(first)
        return True

    def requeue(self, sequence: Sequence) -> None:
        """Has a sequence wait to be recomputed, and with a beam all of its request's."""
        request = sequence.request
        together = [sequence] if request.beams is None else request.sequences
        for each in together:
            if each.status is Status.RUNNING:
                self._stop(each)
            self._tables.release(each, awaited=True)
            each.status = Status.WAITING
        if request.beams is not None:
            request.gather(shares=self._states is None)
        together[0].paused = self._clock()
        self.waiting.put_back(together[0])
