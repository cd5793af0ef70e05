"""The sequences that run, and what the scheduler counts of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from pybatch.engine.scheduling.block_pool import IntegrityError
from pybatch.engine.scheduling.block_turns import BlockTurns
from pybatch.engine.scheduling.forecast import Forecast
from pybatch.engine.scheduling.sequence import Sequence, Status
from pybatch.engine.scheduling.step import Chunk


class Running:
    """Those in their prompts, in order of joining, and the chunks of those that decode, each of which keeps its row
    until it stops.

    max_seqs: of them at most. forecast: is told who runs.
    """

    def __init__(self, max_seqs: int, block_size: int, forecast: Forecast | None) -> None:
        self.max_seqs = max_seqs
        self.prefills: dict[Sequence, None] = {}
        self.decodes: list[Chunk] = []
        self.paced: dict[Sequence, None] = {}  # those that decode and have a TPOT target
        self.turns = BlockTurns(block_size)  # of those that decode
        self.now = 0  # counts steps
        self.at: Sequence | None = None  # the one being looked at, which may wait: if scheduling raises, the cause
        self.short: Sequence | None = None  # the one prompt that has no promise of blocks (see Promises)
        self._rows: dict[Sequence, int] = {}  # a sequence's index in decodes
        self._priorities: Counter[int] = Counter()  # how many of each run
        self._joined = 0  # the last number given to a sequence that joined
        self._forecast = forecast
        self._mass_rows = [(2 * i, 2 * i + 1) for i in reversed(range(max_seqs))]  # those that are free

    def __len__(self) -> int:
        return len(self.decodes) + len(self.prefills)

    def __iter__(self) -> Iterator[Sequence]:
        for chunk in self.decodes:
            yield chunk.sequence
        yield from self.prefills

    @property
    def free_places(self) -> int:
        return self.max_seqs - sum(map(self.places_needed, self.prefills)) - len(self.decodes)

    def places_needed(self, sequence: Sequence) -> int:
        """One, or one per sample while the first of a request's samples computes the prompt for all. So for beams."""
        return 1 if sequence.request.forked else min(sequence.request.num_places, self.max_seqs)

    def num_worse(self, priority: int) -> int:
        """How many are of worse priorities."""
        return sum([count for each, count in self._priorities.items() if each > priority])

    def next_step(self) -> None:
        self.at = None
        self.now += 1
        if self._forecast is not None:
            self._forecast.step()

    def join(self, sequence: Sequence) -> None:
        """It computes its prompt, or what it lost when it was preempted."""
        sequence.status = Status.RUNNING
        sequence.joined = self._joined = self._joined + 1
        if self._forecast is not None:
            self._forecast.add(sequence)
        self._priorities[sequence.priority] += 1
        if sequence.request.pruning is not None and sequence.num_computed < sequence.request.pruning.observed_to:
            sequence.mass_rows = self._mass_rows.pop()
        self.prefills[sequence] = None

    def decode(self, sequence: Sequence) -> None:
        """It has one token left to compute in this step."""
        self.end_short(sequence)
        del self.prefills[sequence]
        self._rows[sequence] = len(self.decodes)
        self.decodes.append(Chunk(sequence, 1, decodes=True))
        if sequence.request.tpot_target is not None:
            self.paced[sequence] = None
        self.turns.plan(sequence, self.now)

    def replan(self, sequence: Sequence) -> None:
        """Something else than one more of its tokens is cached in the next step."""
        if sequence in self._rows:
            self.turns.plan(sequence, self.now + 1)

    def renew(self, sequence: Sequence) -> None:
        """Nothing that is known of its chunk holds any more."""
        if (row := self._rows.get(sequence)) is not None:
            self.decodes[row] = Chunk(sequence, 1, decodes=True)
            self.replan(sequence)

    def end_short(self, sequence: Sequence) -> None:
        """It is promised its blocks, has them, or needs none any more."""
        if sequence is self.short:
            self.short = None

    def stop(self, sequence: Sequence) -> None:
        self.end_short(sequence)
        if self._forecast is not None:
            self._forecast.remove(sequence)
        self._priorities[sequence.priority] -= 1
        if not self._priorities[sequence.priority]:
            del self._priorities[sequence.priority]
        self.return_mass(sequence)
        row = self._rows.pop(sequence, None)
        if row is None:
            del self.prefills[sequence]
            return
        self.paced.pop(sequence, None)
        self.turns.remove(sequence)
        last = self.decodes.pop()  # moves to the empty row, so that all others keep theirs
        if last.sequence is not sequence:
            self.decodes[row] = last
            self._rows[last.sequence] = row

    def return_mass(self, sequence: Sequence) -> None:
        """Its attention is not summed any more."""
        if sequence.mass_rows is not None:
            self._mass_rows.append((min(sequence.mass_rows), max(sequence.mass_rows)))
            sequence.mass_rows = None

    def check_integrity(self, step: int) -> None:
        """Raises IntegrityError unless the parts agree. step: the next to be advanced."""
        rows = [min(each.mass_rows) // 2 for each in self if each.mass_rows]
        if sorted([*rows, *(first // 2 for first, _ in self._mass_rows)]) != list(range(self.max_seqs)):
            raise IntegrityError("rows of sums of attention are lost, or taken twice")
        if self._priorities != Counter(sequence.priority for sequence in self):
            raise IntegrityError("the numbers of running sequences by priority are wrong")
        if self.short is not None and self.short not in self.prefills:
            raise IntegrityError("the prompt without a promise of blocks does not run")
        self.turns.check_integrity([chunk.sequence for chunk in self.decodes], step)
        if self._rows != {chunk.sequence: row for row, chunk in enumerate(self.decodes)}:
            raise IntegrityError("the rows of sequences that decode are wrong")
