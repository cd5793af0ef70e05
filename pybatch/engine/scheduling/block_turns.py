"""When sequences that decode need their next blocks, without a look at all of them in each step."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from pybatch.engine.scheduling.block_pool import IntegrityError
from pybatch.engine.scheduling.sequence import Sequence


class BlockTurns:
    """With a token a step a sequence needs a block every block_size steps: the same ones do at each turn."""

    def __init__(self, block_size: int) -> None:
        self._turns: list[dict[Sequence, None]] = [{} for _ in range(block_size)]
        self._turn_of: dict[Sequence, int] = {}

    def plan(self, sequence: Sequence, step: int) -> None:
        """Of a sequence that has so many tokens at the beginning of a step as it has now; it may be known already."""
        turn = self._turn(sequence, step)
        before = self._turn_of.get(sequence)
        if turn != before:
            if before is not None:
                del self._turns[before][sequence]
            self._turns[turn][sequence] = None
            self._turn_of[sequence] = turn

    def remove(self, sequence: Sequence) -> None:
        del self._turns[self._turn_of.pop(sequence)][sequence]

    def due(self, step: int) -> Collection[Sequence]:
        """Those whose blocks are full at the beginning of a step."""
        return self._turns[step % len(self._turns)]

    def check_integrity(self, sequences: Iterable[Sequence], step: int) -> None:
        """Raises IntegrityError unless these are planned for, with the tokens that they have at the beginning of a
        step."""
        turn_of = {sequence: self._turn(sequence, step) for sequence in sequences}
        turns = [{sequence for sequence, turn in turn_of.items() if turn == i} for i in range(len(self._turns))]
        if self._turn_of != turn_of or [set(each) for each in self._turns] != turns:
            raise IntegrityError("the steps at which sequences need blocks are wrong")

    def _turn(self, sequence: Sequence, step: int) -> int:
        return (step - sequence.num_cached) % len(self._turns)
