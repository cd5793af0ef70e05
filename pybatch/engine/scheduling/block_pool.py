"""Tracks which KV-cache blocks are free, shared or cached, by number: the bytes are in execution/kv_cache.py."""

from __future__ import annotations

from array import array
from collections import Counter, OrderedDict
from collections.abc import Iterable, Sequence
from hashlib import blake2b
from typing import NamedTuple

from pybatch.engine.scheduling.continuations import Continuations


class IntegrityError(AssertionError):
    """The engine's bookkeeping contradicts itself, which is a bug in the engine."""


class BlockKey(NamedTuple):
    """What a block holds: a digest chained over all tokens to its end, its own tokens, and the digest of those before.

    The digest identifies a full block in the prefix cache; a block that is only begun has none.
    """

    digest: bytes
    tokens: bytes
    prefix: bytes = b""

    @classmethod
    def chained(cls, parent: BlockKey | None, tokens: bytes) -> BlockKey:
        prefix = b"" if parent is None else parent.digest
        return cls(blake2b(prefix + tokens, digest_size=16).digest(), tokens, prefix)

    @classmethod
    def begun(cls, parent: BlockKey | None, tokens: bytes) -> BlockKey:
        return cls(b"", tokens, b"" if parent is None else parent.digest)


class Pin:
    """A prefix that is kept until it is released: its tokens and, while it is in the pool, its blocks with what each of
    them holds, the last of which may be begun only."""

    __slots__ = ("blocks", "keys", "state", "tokens")

    def __init__(self, tokens: Iterable[int]) -> None:
        self.tokens = array("q", tokens)
        self.blocks: list[int] = []
        self.keys: list[BlockKey] = []
        self.state: Pin | None = None  # in the pool of recurrent states, of a model that has some


class BlockPool:
    """Reference-counted blocks with a prefix cache.

    A block is in use (one reference an owner), free, or cached: without an owner, its content kept until the block is
    needed. The least recently used is taken first, but those that a sequence waits to use again after all others.

    A full block is never written again and is shared as it is. Of one that is known in part, or differs later on, the
    first tokens are shared by copying it: its owner only writes behind the tokens that it is known by. What is copied
    must have been computed before, so what a step announces counts from the next on (see settle).

    pins: prefixes in the memory that hold their blocks from the start.
    """

    def __init__(self, num_blocks: int, pins: Iterable[Pin] = ()) -> None:
        self.num_blocks = num_blocks
        self._set_pins(tuple(pins))
        self.num_evictions = 0
        self.num_touched = 0  # blocks that have ever been in use: their memory is taken, the others' on a CPU is not
        self.num_references = 0  # of all blocks together
        self._references = [0] * num_blocks
        self._free = list(range(num_blocks - 1, -1, -1))  # a stack: a block just freed is warm in the CPU's caches
        self._evictable: OrderedDict[int, None] = OrderedDict()
        self._awaited: OrderedDict[int, None] = OrderedDict()  # evictable too, but last
        self._cached: dict[bytes, int] = {}
        self._keys: dict[int, BlockKey] = {}
        self._continuations = Continuations()  # of blocks with keys: as much of them as was computed at the last settle
        self._announced: set[int] = set()  # the blocks whose keys have changed since
        for pin in self.pins:
            self.num_touched = max(self.num_touched, *(block + 1 for block in pin.blocks))
            for block in pin.blocks:
                self._references[block] += 1
                self.num_references += 1
        self._free = [block for block in self._free if not self._references[block]]
        self._know_pins()

    @property
    def num_free(self) -> int:
        return len(self._free) + len(self._evictable) + len(self._awaited)

    @property
    def num_used(self) -> int:
        return self.num_blocks - self.num_free

    def references(self, block: int) -> int:
        return self._references[block]

    def allocate(self) -> int:
        """Returns a free block with one reference. Raises IndexError if there is none (see num_free)."""
        if self._free:
            block = self._free.pop()
        elif cached := self._evictable or self._awaited:
            block, _ = cached.popitem(last=False)
            self.forget(block)
            self.num_evictions += 1
        else:
            raise IndexError(f"all {self.num_blocks} blocks are in use")
        self._references[block] = 1
        self.num_references += 1
        self.num_touched = max(self.num_touched, block + 1)
        return block

    def allocate_many(self, count: int) -> list[int]:
        """As so many calls of `allocate`."""
        if count > len(self._free):
            return [self.allocate() for _ in range(count)]
        taken = self._free[-1 : -count - 1 : -1]
        del self._free[len(self._free) - count :]
        for block in taken:
            self._references[block] = 1
        self.num_references += count
        self.num_touched = max(self.num_touched, 1 + max(taken, default=-1))
        return taken

    def num_freed_by(self, tables: Iterable[Sequence[int]]) -> int:
        """How many more blocks would be free if the owners with these block tables returned theirs."""
        owners: Counter[int] = Counter()
        for table in tables:
            owners.update(table)
        return sum([self._references[block] == count for block, count in owners.items()])

    def share(self, block: int) -> None:
        """Adds a reference to a block that is in use or cached."""
        if self._references[block] == 0:
            del (self._evictable if block in self._evictable else self._awaited)[block]
        self._references[block] += 1
        self.num_references += 1

    def release(self, blocks: Sequence[int], *, awaited: bool = False) -> None:
        """Drops one reference to each block of a sequence, last block first, so that prefixes outlive their ends.

        awaited: a waiting sequence will use them again.
        """
        self.num_references -= len(blocks)
        for block in reversed(blocks):
            self._references[block] -= 1
            if self._references[block] == 0:
                key = self._keys.get(block)
                if key is not None and not (key.digest or key.prefix):
                    self.forget(block)  # so that memory does not fill with prompts shorter than a block
                    key = None
                if key is None:
                    self._free.append(block)
                else:
                    (self._awaited if awaited else self._evictable)[block] = None

    def await_none(self) -> None:
        """No sequence waits for blocks that it has used: these are cached ones like any other."""
        self._evictable.update(self._awaited)
        self._awaited.clear()

    def register(self, block: int, key: BlockKey) -> None:
        """Makes a full block known to the prefix cache, unless another block already holds the same tokens."""
        if key.digest not in self._cached:
            self._cached[key.digest] = block
            self._keys[block] = key
            self._announced.add(block)

    def register_begun(self, block: int, key: BlockKey) -> None:
        """Makes known which tokens a block begins with that is in use and not full."""
        known = self._keys.get(block)
        if known is None or len(known.tokens) < len(key.tokens):
            self._keys[block] = key
            self._announced.add(block)

    def settle(self) -> None:
        """What has been announced so far is computed now."""
        for block in self._announced:
            key = self._keys[block]
            self._continuations.put(block, key.prefix, key.tokens)
        self._announced.clear()

    def begins_like(self, parent: BlockKey | None, tokens: bytes) -> tuple[int, int]:
        """The block after `parent` that shares most with `tokens`, and how many bytes; (-1, 0) if there is none."""
        return self._continuations.longest(b"" if parent is None else parent.digest, tokens)

    def find(self, key: BlockKey) -> int | None:
        """The full block with these tokens, if it is in the pool."""
        block = self._cached.get(key.digest)
        return block if block is not None and self._keys[block].tokens == key.tokens else None

    def is_cached(self, key: BlockKey) -> bool:
        return self.find(key) is not None

    def is_known(self, block: int) -> bool:
        """Whether the prefix cache has what it holds."""
        return block in self._keys

    def forget(self, block: int) -> None:
        """Takes a block out of the prefix cache: it does not hold what was announced, or not for long."""
        key = self._keys.pop(block, None)
        if key is None:
            return
        if key.digest:
            del self._cached[key.digest]
        self._announced.discard(block)
        self._continuations.discard(block)

    def drop(self, block: int) -> None:
        """Frees a cached block: nobody will look for it. Does nothing if it is in use."""
        if self._references[block] == 0 and block in self._keys:
            del (self._evictable if block in self._evictable else self._awaited)[block]
            self.forget(block)
            self._free.append(block)

    def pin(self, pin: Pin, blocks: Sequence[int], keys: Sequence[BlockKey]) -> None:
        """Keeps the blocks, which are in use and hold what the keys say, until unpin. Where the prefix cache has the
        same tokens in another block, that one is kept."""
        for block, key in zip(blocks, keys, strict=True):
            (self.register if key.digest else self.register_begun)(block, key)
        full = [key for key in keys if key.digest]
        pin.blocks, pin.keys = self.match(full), list(keys)
        for block in blocks[len(full) :]:
            self.share(block)
            pin.blocks.append(block)
        self._set_pins((*self.pins, pin))

    def unpin(self, pin: Pin) -> None:
        """Its blocks are cached ones like any others from now on. Does nothing if it is not pinned."""
        if pin in self.pins:
            self._set_pins(tuple(each for each in self.pins if each is not pin))
            self.release(pin.blocks)
            pin.blocks, pin.keys = [], []

    def _set_pins(self, pins: tuple[Pin, ...]) -> None:
        self.pins = pins
        self.num_pinned = len({block for pin in pins for block in pin.blocks})

    def forget_cached(self) -> None:
        """Empties the prefix cache but for what is pinned; blocks in use stay so."""
        self._free += [*self._evictable, *self._awaited]
        self._evictable.clear()
        self._awaited.clear()
        self._cached.clear()
        self._keys.clear()
        self._announced.clear()
        self._continuations.clear()
        self._know_pins()

    def _know_pins(self) -> None:
        for pin in self.pins:
            for block, key in zip(pin.blocks, pin.keys, strict=True):
                self._keys[block] = key
                self._announced.add(block)
                if key.digest:
                    self._cached[key.digest] = block

    def match(self, keys: Iterable[BlockKey]) -> list[int]:
        """Returns the longest run of cached blocks for these keys, and takes a reference to each."""
        blocks = []
        for key in keys:
            block = self.find(key)
            if block is None:
                break
            self.share(block)
            blocks.append(block)
        return blocks

    def check_integrity(self, tables: Iterable[Sequence[int]]) -> None:
        """Raises IntegrityError unless every block is used, free or cached exactly as the owners' block tables say."""
        owners = [0] * self.num_blocks
        for table in (*tables, *(pin.blocks for pin in self.pins)):
            for block in table:
                owners[block] += 1
        for block, count in enumerate(owners):
            if self._references[block] != count:
                raise IntegrityError(f"block {block} has {self._references[block]} references and {count} owners")
        if self.num_references != sum(owners):
            raise IntegrityError(f"{self.num_references} references are counted, and {sum(owners)} owners")
        free, cached = set(self._free), self._evictable.keys() | self._awaited.keys()
        if self.num_free != len(free | cached) or free & self._keys.keys():
            raise IntegrityError("a block is free twice, or free and cached")
        idle = {block for block, count in enumerate(owners) if count == 0}
        if free | cached != idle:
            raise IntegrityError(f"blocks lost or free in use: {sorted(idle ^ (free | cached))}")
        if not cached <= self._keys.keys():
            raise IntegrityError("an evictable block has no key")
        if {key.digest: block for block, key in self._keys.items() if key.digest} != self._cached:
            raise IntegrityError("the prefix cache's two maps disagree")
        copyable = self._continuations.known
        if self._keys.keys() != self._announced | copyable.keys():
            raise IntegrityError("the blocks that can be copied are not those that are known")
        for block, (prefix, tokens) in copyable.items():
            key = self._keys[block]
            if prefix != key.prefix or not key.tokens.startswith(tokens):
                raise IntegrityError(f"block {block} does not hold what it can be copied for")
