"""Tracks which KV-cache blocks are free, shared or cached, by number: the bytes are in execution/kv_cache.py."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterable, Sequence
from hashlib import blake2b
from typing import NamedTuple


class IntegrityError(AssertionError):
    """The engine's bookkeeping contradicts itself, which is a bug in the engine."""


class BlockKey(NamedTuple):
    """Identifies a full block in the prefix cache: a digest chained over all tokens to its end, and its own tokens."""

    digest: bytes
    tokens: bytes

    @classmethod
    def chained(cls, parent: BlockKey | None, tokens: bytes) -> BlockKey:
        prefix = b"" if parent is None else parent.digest
        return cls(blake2b(prefix + tokens, digest_size=16).digest(), tokens)


class BlockPool:
    """Reference-counted blocks with a prefix cache.

    A block is in use (one reference an owner), free, or cached: without an owner, its content kept until the block is
    needed. The least recently used is taken first, but those that a sequence waits to use again after all others. Only
    full blocks are cached, and they are never written again.
    """

    def __init__(self, num_blocks: int) -> None:
        self.num_blocks = num_blocks
        self.num_evictions = 0
        self.num_touched = 0  # blocks that have ever been in use: their memory is taken, the others' on a CPU is not
        self.num_references = 0  # of all blocks together
        self._references = [0] * num_blocks
        self._free = list(range(num_blocks - 1, -1, -1))  # a stack: a block just freed is warm in the CPU's caches
        self._evictable: OrderedDict[int, None] = OrderedDict()
        self._awaited: OrderedDict[int, None] = OrderedDict()  # evictable too, but last
        self._cached: dict[bytes, int] = {}
        self._keys: dict[int, BlockKey] = {}

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
            del self._cached[self._keys.pop(block).digest]
            self.num_evictions += 1
        else:
            raise IndexError(f"all {self.num_blocks} blocks are in use")
        self._references[block] = 1
        self.num_references += 1
        self.num_touched = max(self.num_touched, block + 1)
        return block

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
                if block in self._keys:
                    (self._awaited if awaited else self._evictable)[block] = None
                else:
                    self._free.append(block)

    def await_none(self) -> None:
        """No sequence waits for blocks that it has used: these are cached ones like any other."""
        self._evictable.update(self._awaited)
        self._awaited.clear()

    def register(self, block: int, key: BlockKey) -> None:
        """Makes a full block known to the prefix cache, unless another block already holds the same tokens."""
        if key.digest not in self._cached:
            self._cached[key.digest] = block
            self._keys[block] = key

    def is_cached(self, key: BlockKey) -> bool:
        block = self._cached.get(key.digest)
        return block is not None and self._keys[block].tokens == key.tokens

    def forget(self, block: int) -> None:
        """Takes a block that is in use out of the prefix cache: it does not hold what was announced."""
        key = self._keys.pop(block, None)
        if key is not None:
            del self._cached[key.digest]

    def forget_cached(self) -> None:
        """Empties the prefix cache; blocks in use stay so."""
        self._free += [*self._evictable, *self._awaited]
        self._evictable.clear()
        self._awaited.clear()
        self._cached.clear()
        self._keys.clear()

    def match(self, keys: Iterable[BlockKey]) -> list[int]:
        """Returns the longest run of cached blocks for these keys, and takes a reference to each."""
        blocks = []
        for key in keys:
            if not self.is_cached(key):
                break
            block = self._cached[key.digest]
            self.share(block)
            blocks.append(block)
        return blocks

    def check_integrity(self, tables: Iterable[Sequence[int]]) -> None:
        """Raises IntegrityError unless every block is used, free or cached exactly as the owners' block tables say."""
        owners = [0] * self.num_blocks
        for table in tables:
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
        if {key.digest: block for block, key in self._keys.items()} != self._cached:
            raise IntegrityError("the prefix cache's two maps disagree")
