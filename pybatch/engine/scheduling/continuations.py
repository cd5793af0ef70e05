"""Finds, of the blocks that may follow a prefix, the one that begins most like given tokens."""

from __future__ import annotations

from bisect import bisect_left, insort

from pybatch.engine.scheduling.common_prefix import num_shared


class Continuations:
    """Blocks by the prefix that they continue, those of one prefix in the order of their tokens: what shares most with
    any tokens is a neighbour of the place where these would stand (as in a suffix array, Manber and Myers 1990)."""

    def __init__(self) -> None:
        self.known: dict[int, tuple[bytes, bytes]] = {}  # the prefix and the tokens of each block
        self._after: dict[bytes, list[tuple[bytes, int]]] = {}

    def put(self, block: int, prefix: bytes, tokens: bytes) -> None:
        """In place of what the block was known by."""
        self.discard(block)
        self.known[block] = prefix, tokens
        insort(self._after.setdefault(prefix, []), (tokens, block))

    def discard(self, block: int) -> None:
        if block not in self.known:
            return
        prefix, tokens = self.known.pop(block)
        entries = self._after[prefix]
        del entries[bisect_left(entries, (tokens, block))]
        if not entries:
            del self._after[prefix]

    def clear(self) -> None:
        self.known.clear()
        self._after.clear()

    def longest(self, prefix: bytes, tokens: bytes) -> tuple[int, int]:
        """The block that shares most with `tokens`, and how many bytes; (-1, 0) if none shares any."""
        entries = self._after.get(prefix, [])
        place = bisect_left(entries, (tokens, -1))
        best, most = -1, 0
        for begins, block in entries[max(place - 1, 0) : place + 1]:
            if (count := num_shared(begins, tokens)) > most:
                best, most = block, count
        return best, most
