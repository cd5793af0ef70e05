"""Tracks the host's blocks that keep what preempted sequences have computed, by number: the engine moves the bytes."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable

from pybatch.engine.scheduling.block_pool import IntegrityError
from pybatch.engine.scheduling.sequence import Sequence

Pairs = list[tuple[int, int]]


class SwapSpace:
    """Blocks of the host's memory. A preempted sequence has either its tokens alone, or host blocks too.

    pays: whether to move so many blocks there and back is cheaper than to compute so many tokens again.
    """

    def __init__(self, num_blocks: int, pays: Callable[[int, int], bool]) -> None:
        self.num_blocks = num_blocks
        self._pays = pays
        self._free = list(range(num_blocks - 1, -1, -1))  # a stack, so that little memory is touched
        self._outs: Pairs = []
        self._ins: dict[Sequence, Pairs] = {}

    @property
    def num_used(self) -> int:
        return self.num_blocks - len(self._free)

    def keep(self, sequence: Sequence, block_size: int) -> None:
        """Is to be called before a sequence that is preempted returns its blocks: has them moved to the host, if that
        pays. One that is pruned is computed again: its blocks are not all that it needs. What was to be moved back in
        this step stays where it is."""
        if self._ins.pop(sequence, None) is not None:
            sequence.num_computed = 0  # its blocks hold nothing yet
            return
        count = -(-sequence.num_computed // block_size)
        if (
            sequence.request.pruning is not None
            or not 0 < count <= len(self._free)
            or not self._pays(sequence.num_computed, count)
        ):
            return
        sequence.host_blocks = array("i", [self._free.pop() for _ in range(count)])
        sequence.num_kept = sequence.num_computed
        self._outs += zip(sequence.blocks, sequence.host_blocks, strict=False)

    def restore(self, sequence: Sequence, block_size: int) -> None:
        """Has what a sequence has on the host moved to its blocks behind those that are computed."""
        first = sequence.num_computed // block_size
        self._ins[sequence] = list(zip(sequence.host_blocks[first:], sequence.blocks[first:], strict=False))
        sequence.num_computed = max(sequence.num_computed, sequence.num_kept)

    def drop(self, sequence: Sequence) -> None:
        """The sequence has ended, or goes on in the pool."""
        self._free.extend(sequence.host_blocks)
        del sequence.host_blocks[:]
        sequence.num_kept = 0
        self._ins.pop(sequence, None)

    def take_moves(self) -> tuple[Pairs, Pairs]:
        """The (block, host block) pairs to move to the host, and the (host block, block) pairs to move back after that,
        before anything else writes to blocks."""
        outs, self._outs = self._outs, []
        ins: Pairs = []
        for sequence, pairs in list(self._ins.items()):
            ins += pairs
            self.drop(sequence)
        return outs, ins

    def check_integrity(self, sequences: Iterable[Sequence]) -> None:
        """Raises IntegrityError unless every host block is free or one sequence's."""
        owned = [block for sequence in sequences for block in sequence.host_blocks]
        if sorted([*owned, *self._free]) != list(range(self.num_blocks)):
            raise IntegrityError("host blocks are lost, or two have one")
