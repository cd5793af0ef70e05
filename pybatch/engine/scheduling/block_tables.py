"""Gives sequences their KV blocks, and tells the prefix cache what these hold."""

from __future__ import annotations

from array import array
from itertools import islice

from pybatch.engine.scheduling.block_pool import BlockKey, BlockPool
from pybatch.engine.scheduling.prefix_store import PrefixStore
from pybatch.engine.scheduling.sequence import Sequence
from pybatch.engine.scheduling.state_slots import StateSlots


class BlockTables:
    """A sequence's blocks hold its cached tokens in order; the last may be full in part.

    It takes them as it needs them. Those that it is to have for known tokens are promised to it: they stay free, or
    cached, until then, and who promises blocks to others is to leave so many.

    prefix_store: of prefixes that are not in the pool. states: of a model that has recurrent ones; then a sequence can
    go on behind a prefix only where its state was kept, and a block that is full in part is of no use to another.
    """

    def __init__(
        self,
        pool: BlockPool,
        block_size: int,
        *,
        prefix_caching: bool,
        prefix_store: PrefixStore | None = None,
        states: StateSlots | None = None,
    ) -> None:
        self.pool = pool
        self.block_size = block_size
        self._prefix_caching = prefix_caching
        self._prefix_store = prefix_store
        self.states = states
        self.num_promised = 0  # to all together
        self._copies: dict[Sequence, tuple[int, int]] = {}  # of those that have joined in this step

    def blocks_for(self, num_tokens: int) -> int:
        return -(-num_tokens // self.block_size)

    def num_missing(self, sequence: Sequence, count: int) -> int:
        """The number of blocks that a sequence lacks for its next `count` tokens."""
        return self.blocks_for(sequence.num_cached + count) - len(sequence.blocks)

    def promise(self, sequence: Sequence, num_blocks: int) -> None:
        """So many from now on, whatever was promised to it before."""
        self.num_promised += num_blocks - sequence.num_promised
        sequence.num_promised = num_blocks

    def extend(self, sequence: Sequence, num_blocks: int) -> None:
        """Gives it blocks; first those that were promised."""
        sequence.blocks.extend(self.pool.allocate() for _ in range(num_blocks))
        self.promise(sequence, max(0, sequence.num_promised - max(0, num_blocks)))

    def trim(self, sequence: Sequence) -> None:
        """Returns the blocks behind its cached tokens."""
        kept = self.blocks_for(sequence.num_cached)
        self.pool.release(sequence.blocks[kept:])
        del sequence.blocks[kept:]

    def release(self, sequence: Sequence, *, awaited: bool = False) -> None:
        """Returns all. awaited: the sequence will use them again."""
        if copy := self._copies.pop(sequence, None):
            self.pool.release(copy[:1])
        self.pool.release(sequence.held + sequence.blocks, awaited=awaited)
        if self.states is not None:
            self.states.release(sequence, awaited=awaited)
        del sequence.blocks[:], sequence.held[:]
        self.promise(sequence, 0)
        sequence.num_computed = sequence.num_registered = sequence.num_pruned = 0
        sequence.next_pruning = sequence.request.first_pruning

    def _may_share(self, sequence: Sequence) -> bool:
        """Whether the prefix cache is of use to it."""
        return self._prefix_caching and not sequence.request.computes_all

    def match(self, sequence: Sequence) -> None:
        """Begins a sequence's table with the full blocks that the prefix cache has of its tokens, but for the last one,
        which is always computed: its logits are wanted."""
        if not self._may_share(sequence):
            return
        full = self._most_shared(sequence)
        sequence.make_keys(full, self.block_size)
        found = self.pool.match(islice(sequence.keys, full))
        if self.states is not None:
            used = self.states.take(sequence, len(found), full)
            self.pool.release(found[used:])
            del found[used:]
        sequence.blocks.extend(found)
        sequence.num_registered = len(sequence.blocks)
        sequence.num_computed = len(sequence.blocks) * self.block_size

    def _most_shared(self, sequence: Sequence) -> int:
        """How many full blocks may come from elsewhere. The first of several beams does not pass the state from which
        the others are to go on."""
        request, most = sequence.request, len(sequence.tokens) - 1
        if self.states is not None and request.is_gathered:
            most = request.num_shared
        return min(most, request.most_shared) // self.block_size

    def num_stored(self, sequence: Sequence) -> int:
        """How many tokens the prefix store has behind those found in the pool."""
        if self._prefix_store is None or not self._may_share(sequence):
            return 0
        keys = islice(sequence.keys, sequence.num_registered, self._most_shared(sequence))
        return self._prefix_store.count(keys) * self.block_size

    def load_prefix(self, sequence: Sequence, num_stored: int) -> None:
        """Has the prefix store fill so many tokens' blocks of a sequence that joins."""
        store, found = self._prefix_store, sequence.num_registered
        if store is None or not self._may_share(sequence):
            return
        if num_stored:
            keys = sequence.keys[found : found + num_stored // self.block_size]
            loaded = store.load(keys, sequence.blocks[found:])
            self.register(sequence, (found + loaded) * self.block_size)
            sequence.num_computed = sequence.num_registered * self.block_size
        if not sequence.returning:
            sequence.request.metrics.num_disk_tokens = (sequence.num_registered - found) * self.block_size
            store.want(sequence.keys[: sequence.num_registered])

    def copy_beginning(self, sequence: Sequence) -> None:
        """Has the first tokens that are not computed copied from a block that begins with them, if there is one."""
        if not self._may_share(sequence) or self.states is not None:
            return
        full = sequence.num_computed // self.block_size
        last = min((full + 1) * self.block_size, len(sequence.tokens) - 1, sequence.request.most_shared)
        wanted = sequence.tokens[sequence.num_computed : last]
        source, shared = self.pool.begins_like(sequence.key_before(full), wanted.tobytes())
        if shared >= wanted.itemsize and (self.pool.references(source) or self.pool.num_free > self.num_promised):
            self.pool.share(source)  # until it has been copied
            self._copies[sequence] = source, sequence.blocks[full]
            sequence.num_computed += shared // wanted.itemsize

    def awaits_copy(self, sequence: Sequence) -> bool:
        """Whether one of its blocks does not hold yet what num_computed counts."""
        return sequence in self._copies

    def take_copies(self) -> list[tuple[int, int]]:
        """The (source, destination) pairs of the blocks to copy before the step is computed."""
        copies = list(self._copies.values())
        self._copies.clear()
        self.pool.release([source for source, _ in copies])
        return copies

    def share(self, parent: Sequence, child: Sequence, num_tokens: int) -> list[tuple[int, int]]:
        """Lets a child go on from so many of the parent's tokens, in the same blocks but for one that is not full,
        which it will write to. It is promised those for what it knows beyond these, but for its last token. Returns the
        (source, destination) pairs to copy."""
        full = (num_tokens - parent.num_pruned) // self.block_size
        for block in parent.blocks[:full] + parent.held:
            self.pool.share(block)
        child.blocks.extend(parent.blocks[:full])
        child.held.extend(parent.held)
        child.num_computed, child.num_pruned = num_tokens, parent.num_pruned
        child.next_pruning = parent.next_pruning
        child.num_registered = min(parent.num_registered, full)
        if self.states is not None:
            self.states.share(parent, child, num_tokens)
        partial = self.partial(parent, num_tokens)
        self.extend(child, len(partial))
        self.promise(child, self.num_missing(child, child.num_pending - 1))
        return list(zip(partial, child.blocks[full:], strict=True))

    def partial(self, sequence: Sequence, num_tokens: int) -> array[int]:
        """Of its blocks that which so many tokens fill in part, if there is one."""
        cached = num_tokens - sequence.num_pruned
        return sequence.blocks[cached // self.block_size : self.blocks_for(cached)]

    def register(self, sequence: Sequence, end: int) -> None:
        """Tells the prefix cache of the blocks that are full once the tokens before `end` are computed, and what the
        next begins with. Sequences that join in the same step may share full ones: each layer writes all keys and
        values before any attention reads them. What is computed over a pruned cache is not what these tokens stand
        for."""
        if not self._prefix_caching or sequence.num_pruned:
            return
        full = end // self.block_size
        if full > sequence.num_registered:
            sequence.make_keys(full, self.block_size)
            for i in range(sequence.num_registered, full):
                self.pool.register(sequence.blocks[i], sequence.keys[i])
            sequence.num_registered = full
        if begun := sequence.tokens[full * self.block_size : end]:
            sequence.make_keys(full, self.block_size)
            key = BlockKey.begun(sequence.key_before(full), begun.tobytes())
            self.pool.register_begun(sequence.blocks[full], key)

    def register_filled(self, sequence: Sequence) -> None:
        """Tells the prefix cache of the blocks that were filled as a sequence decoded, now that it is to return them:
        hardly anyone wants them earlier, and no step is the longer for it."""
        if sequence not in self._copies:
            self.register(sequence, min(sequence.num_computed, len(sequence.tokens)))

    def num_shared(self, sequence: Sequence) -> int:
        """How many of its first blocks others hold too."""
        count = 0
        while count < len(sequence.blocks) and self.pool.references(sequence.blocks[count]) > 1:
            count += 1
        return count

    def waste(self, sequence: Sequence) -> tuple[bool, int]:
        """Of preempting it: whether it is in vain, since no block becomes free; and how many tokens are computed again.
        Blocks that others hold too do not become free, and are found again through the prefix cache."""
        shared = self.num_shared(sequence)
        kept = shared * self.block_size if self._prefix_caching else 0
        return shared == len(sequence.blocks), max(0, sequence.num_computed - kept)

    def pin(self, sequence: Sequence) -> None:
        """Keeps the blocks of a prompt that is to be pinned, if it is computed."""
        pin = sequence.request.pin
        if pin is None or sequence.num_computed < len(pin.tokens):
            return
        full = len(pin.tokens) // self.block_size
        sequence.make_keys(full, self.block_size)
        keys = sequence.keys[:full]
        if begun := pin.tokens[full * self.block_size :]:
            keys.append(BlockKey.begun(sequence.key_before(full), begun.tobytes()))
        self.pool.pin(pin, sequence.blocks[: len(keys)], keys)
        if self.states is not None:
            self.states.pin(pin)
        if self._prefix_store is not None:
            self._prefix_store.want(keys[:full])
