"""Fills what decoding leaves of a step with chunks of prompts: those under way, and those that join."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import islice

from pybatch.engine.scheduling.admission import Admission, Load
from pybatch.engine.scheduling.block_tables import BlockTables
from pybatch.engine.scheduling.joining import Joining
from pybatch.engine.scheduling.promises import Promises
from pybatch.engine.scheduling.running import Running
from pybatch.engine.scheduling.sequence import Sequence, Status
from pybatch.engine.scheduling.step import Chunk, Step
from pybatch.engine.scheduling.target_budget import TargetBudget
from pybatch.engine.scheduling.waiting_queue import WaitingQueue
from pybatch.engine.standing import BACKGROUND

_LOOK_AHEAD = 16  # sequences without room that are considered in a step


class ChunkedPrefill:
    """Prompts under way come first, then waiting ones, as far as the policy lets them join; but those of a better
    priority join before a prompt under way goes on.

    A step's prompts are as many tokens as TPOT targets of sequences that decode leave time for, and those that are in
    danger of missing their TTFT targets come before others of their priority (see TargetBudget).

    Prompts of priority BACKGROUND or more fill a step's prompt tokens up to max_background_tokens only. So an
    interactive sequence, if others like it leave it room, is in the next step after it has come, and has waited for at
    most one step of max_num_seqs tokens that decode and max_background_tokens of prompts, or as many as interactive
    prompts have. Its prompt then gets in each step what the tokens that decode leave of the budget.

    While the prompt that runs without a promise of blocks, or the first in the queue, has no room, later sequences that
    fit may pass it: at most max_num_seqs of them, after which nobody joins until it has its blocks. A preempted
    sequence is never passed. While one waits none of a worse priority joins, so that what it preempts does not come
    back to be preempted again.
    """

    def __init__(
        self,
        tables: BlockTables,
        running: Running,
        waiting: WaitingQueue,
        promises: Promises,
        joining: Joining,
        *,
        admission: Admission,
        targets: TargetBudget,
        max_num_batched_tokens: int,
        max_background_tokens: int,
        clock: Callable[[], float],
    ) -> None:
        self._tables = tables
        self._running = running
        self._waiting = waiting
        self._promises = promises
        self._joining = joining
        self._admission = admission
        self._targets = targets
        self._max_tokens = max_num_batched_tokens
        self._max_background = max_background_tokens
        self._clock = clock

    def fill(self, step: Step, preempted: int | None) -> None:
        """preempted: the best priority that was preempted for this step, so that only better ones may join."""
        self._targets.begin(len(self._running.decodes), self._running.paced, self._clock())
        if preempted is not None:
            self._take(step, -math.inf, preempted)
            step.closed = True
        self._take(step, -math.inf if preempted is None else preempted, math.inf)
        if step.open_places is not None:
            self._admission.joined(step.newcomers, full=step.full)

    def _take(self, step: Step, first: float, below: float) -> None:
        """Takes prompts under way of priorities from `first` to below `below` into a step, and in front of each the
        waiting sequences of better priorities than its own."""
        running = [sequence for sequence in self._running.prefills if first <= sequence.priority < below]
        danger = {sequence for sequence in running if self._targets.in_danger(sequence)}
        others = {sequence.priority for sequence in running if sequence not in danger}
        for sequence in sorted(running, key=lambda each: (each.priority, each not in danger)):
            self._admit(step, sequence.priority)
            if sequence.priority in others:
                step.kept = self._targets.kept_for_others
            if sequence not in danger:
                self._admit(step, sequence.priority + 1, in_danger=True)
                step.kept = 0
            self._running.at = sequence
            if sequence.status is Status.RUNNING and not self._go_on(step, sequence) and sequence not in danger:
                break
            step.kept = 0
        self._admit(step, below)

    def _go_on(self, step: Step, sequence: Sequence) -> bool:
        """Takes the next chunk of a prompt into the step. Returns whether the step has tokens left for it."""
        wanted = self._num_wanted(sequence)
        count = min(wanted, self._budget(step, sequence))
        if self._tables.states is not None:
            count = self._tables.states.cut(sequence, count)
        if count == 0:
            return wanted == 0
        if self._promises.take(sequence, count):
            step.tokens += count
            step.pairs += count * sequence.num_cached + count * (count + 1) // 2
            self._tables.register(sequence, sequence.num_computed + count)
            step.chunks.append(Chunk(sequence, count))
        return True

    def _num_wanted(self, sequence: Sequence) -> int:
        """How many more tokens of a prompt are to be computed: the last of several beams' are for all in one step, and
        those behind the next pruning come after it. Where there are states the first beam stops at the one from which
        all go on."""
        request = sequence.request
        if self._tables.states is not None and request.is_gathered:
            return request.num_shared - sequence.num_computed
        return sequence.num_due - (request.beams is not None and len(request.sequences) > 1)

    def _budget(self, step: Step, sequence: Sequence) -> int:
        """How many prompt tokens of the sequence the step has room for."""
        left = max(0, self._max_tokens - len(self._running.decodes) - step.tokens - step.kept)
        if sequence.priority >= BACKGROUND:
            left = max(0, min(left, self._max_background - step.tokens))
        return self._targets.tokens(sequence, step, left)

    def _admit(self, step: Step, below: float, *, in_danger: bool = False) -> None:
        """Lets waiting sequences of priorities below `below` join. in_danger: the first ones that are."""
        if step.closed or not self._waiting or self._waiting.best >= below:
            return
        if in_danger and not (self._targets.known and self._targets.in_danger(self._waiting.first)):
            return
        self._running.at = None
        if step.open_places is None:
            step.open_places = self._admission.open_places(self._load())
        places = self._running.free_places
        possible = places + self._running.num_worse(self._waiting.best)
        blocked: list[Sequence] = []
        candidates = self._waiting.candidates(
            below=below, newcomers=step.open_places, last=self._admission.last, length=self._admission.length
        )
        for sequence in list(islice(candidates, possible + _LOOK_AHEAD if possible else 1)):
            if in_danger and not self._targets.in_danger(sequence):
                break
            budget = self._budget(step, sequence)
            if budget == 0:
                step.closed = True
                break
            self._running.at = sequence
            short = self._running.short
            if not blocked and short is not None and short.priority <= sequence.priority:
                blocked.append(short)
            if len(blocked) > _LOOK_AHEAD or (blocked and not self._may_pass(sequence, blocked[0])):
                step.full = True
                break
            step.open_places -= not sequence.returning
            needed, passing = self._running.places_needed(sequence), bool(blocked)
            if needed > places or not self._joining.join(sequence, budget, passing=passing):
                if not self._joining.join_instead(sequence, budget, passing=passing):
                    blocked.append(sequence)
                    step.full = True
                    continue
                places = self._running.free_places + needed
            if passing:
                blocked[0].num_passed += 1
            places -= needed
            if not sequence.returning:
                step.newcomers += 1
                self._waiting.charge(sequence, sequence.num_pending)
            self._waiting.remove(sequence)
            self._go_on(step, sequence)
        step.closed = step.closed or bool(blocked)
        self._running.at = None

    def _may_pass(self, sequence: Sequence, waiting: Sequence) -> bool:
        """Whether one may join before another that lacks room."""
        may_be_passed = not waiting.returning and waiting.num_passed < self._running.max_seqs
        return may_be_passed and sequence.priority == waiting.priority

    def _load(self) -> Load:
        return Load(
            running=len(self._running),
            prefilling=len(self._running.prefills),
            waiting=len(self._waiting) - self._waiting.num_returning,
            returning=self._waiting.num_returning,
            first_length=len(self._waiting.first.tokens),
            longest_wait=self._clock() - self._waiting.oldest.request.metrics.arrival_time,
            queued=self._waiting.num_queued,
            max_num_seqs=self._running.max_seqs,
        )
