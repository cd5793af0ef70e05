"""Gives sequences the slots of their recurrent states, and tells the prefix cache what these hold."""

from __future__ import annotations

from array import array
from collections.abc import Iterable

from pybatch.engine.scheduling.block_pool import BlockPool, Pin
from pybatch.engine.scheduling.sequence import NO_STATE, Sequence

SLOTS = 2  # of a sequence that runs


class StateSlots:
    """Where a model has layers of linear attention, a sequence has a state beside its KV blocks: in one slot of a pool
    of its own, whose slots are shared, cached and evicted as blocks are.

    A step reads the state of the tokens before it in one slot and writes that of its last token to another. So it can
    be computed again if it fails, and several sequences can go on from one state. Whoever runs therefore has two slots,
    and uses them by turns.

    No state can be had from a later one, so that a prefix is found only up to the last block edge whose state was kept.
    Kept are, as in Marconi (Pan et al. 2024),
    - the state at the end of a prompt's full blocks, for those who come with more behind it;
    - where a prompt leaves another whose blocks are known, for the next who leaves it there;
    - at the last block edge that a sequence has come to: for itself when it is preempted, and a chat's next turn.
    A kept state is never written again. It takes no slot that anyone needs: who runs comes before what is kept.
    """

    def __init__(self, pool: BlockPool, block_size: int, *, max_num_seqs: int, keeps: bool) -> None:
        """pool: of slots, at least two. max_num_seqs: that run at once, if there are two slots for each. keeps: the
        prefix cache is on."""
        self.pool = pool
        self.max_num_seqs = min(max_num_seqs, pool.num_blocks // SLOTS)
        self._num_spare = pool.num_blocks - SLOTS * self.max_num_seqs
        self._block_size = block_size
        self._keeps = keeps

    def take(self, sequence: Sequence, num_found: int, num_full: int) -> int:
        """Begins a sequence with the last kept state of the first num_found blocks of its tokens. Returns behind how
        many blocks that is. num_full: its blocks that others may use too."""
        count = num_found
        while count and not self.pool.is_cached(sequence.keys[count - 1]):
            count -= 1
        if count:
            (sequence.state,) = self.pool.match([sequence.keys[count - 1]])
        ends = sorted({each for each in (num_found, num_full) if each > count})
        sequence.state_edges = array("q", [each * self._block_size for each in ends])
        return count

    def cut(self, sequence: Sequence, count: int) -> int:
        """How many of a prompt's next `count` tokens come before an edge whose state is to be kept."""
        ahead = [edge - sequence.num_computed for edge in sequence.state_edges if edge > sequence.num_computed]
        return min([count, *ahead])

    def prepare(self, sequence: Sequence) -> None:
        """Gives it a slot to write to in the next step."""
        if sequence.next_state == NO_STATE:
            sequence.next_state = self.pool.allocate()

    def advance(self, sequence: Sequence) -> None:
        """A step is computed: its state is in the slot that it had for that."""
        before, sequence.state, sequence.next_state = sequence.state, sequence.next_state, NO_STATE
        if before != NO_STATE:
            if self.pool.references(before) > 1 or self.pool.is_known(before):
                self.pool.release([before])
            else:
                sequence.next_state = before
        if self._keeps and sequence.num_computed % self._block_size == 0:
            self._keep(sequence)

    def _keep(self, sequence: Sequence) -> None:
        """At a block edge. The one before it is of no use any more, unless it is the prompt's."""
        length = sequence.num_computed
        output = length - len(sequence.request.prompt_token_ids)
        if output < 0 and length not in sequence.state_edges:
            return
        blocks = length // self._block_size
        sequence.make_keys(blocks, self._block_size)
        if output >= self._block_size and length - self._block_size not in sequence.state_edges:
            earlier = self.pool.find(sequence.keys[blocks - 2])
            if earlier is not None:
                self.pool.drop(earlier)
        self.pool.register(sequence.state, sequence.keys[blocks - 1])

    def share(self, parent: Sequence, child: Sequence, num_tokens: int) -> None:
        """Lets a child go on from the parent's state, or begin."""
        if num_tokens:
            assert num_tokens == parent.num_computed
            self.pool.share(parent.state)
            child.state = parent.state

    def release(self, sequence: Sequence, *, awaited: bool = False) -> None:
        self.pool.release([each for each in _slots(sequence) if each != NO_STATE], awaited=awaited)
        sequence.state = sequence.next_state = NO_STATE
        sequence.state_edges = array("q")

    def pin(self, pin: Pin) -> None:
        """Keeps the state at the end of a pinned prefix's full blocks, if that leaves enough for who runs."""
        full = [key for key in pin.keys if key.digest]
        slot = self.pool.find(full[-1]) if full else None
        if slot is not None and self.pool.num_pinned < self._num_spare:
            pin.state = Pin(pin.tokens)
            self.pool.pin(pin.state, [slot], full[-1:])

    def unpin(self, pin: Pin) -> None:
        if pin.state is not None:
            self.pool.unpin(pin.state)
            pin.state = None

    def check_integrity(self, sequences: Iterable[Sequence]) -> None:
        """Raises IntegrityError unless every slot is a running sequence's, kept or free."""
        self.pool.check_integrity([[each for each in _slots(sequence) if each != NO_STATE] for sequence in sequences])


def _slots(sequence: Sequence) -> tuple[int, int]:
    return sequence.state, sequence.next_state
