"""Equal requests of one job: which of them runs, and which rows are marked as answered from another's answer."""

from __future__ import annotations

from array import array
from collections import deque
from typing import Generic, TypeVar

T = TypeVar("T")


class InFlight(Generic[T]):
    """Requests that wait or run, by key. The first with a key leads; equal ones follow it and get its answer.

    max_followers, max_bytes: bounds on the followers, which has_room tells of.
    """

    def __init__(self, *, max_followers: int = 4096, max_bytes: int = 32 << 20) -> None:
        self._max_followers, self._max_bytes = max_followers, max_bytes
        self._followers: dict[bytes, deque[tuple[T, int]]] = {}
        self._count = self._bytes = 0

    def __len__(self) -> int:
        """How many requests follow others."""
        return self._count

    @property
    def has_room(self) -> bool:
        return self._count < self._max_followers and self._bytes < self._max_bytes

    def join(self, key: bytes, request: T, size: int = 0) -> bool:
        """Returns whether the request leads, and so is to run. If not it is kept, to be returned by `answered` or
        `failed`. size: in bytes."""
        followers = self._followers.get(key)
        if followers is None:
            self._followers[key] = deque()
            return True
        followers.append((request, size))
        self._count += 1
        self._bytes += size
        return False

    def answered(self, key: bytes) -> list[T]:
        """The followers of a request that has its answer, as they came."""
        followers = self._followers.pop(key)
        self._count -= len(followers)
        self._bytes -= sum(size for _, size in followers)
        return [request for request, _ in followers]

    def failed(self, key: bytes) -> T | None:
        """The follower that leads now, and is to run, since a failure is the failed request's alone; None if there is
        none."""
        followers = self._followers[key]
        if not followers:
            del self._followers[key]
            return None
        request, size = followers.popleft()
        self._count -= 1
        self._bytes -= size
        return request


class KeySet:
    """64-bit numbers above 0, in 8 bytes for each place of a table of which a third or more is free.

    Tells which rows of a job repeat an earlier one. This is asked row by row at the job's end: then the marks are the
    same however the job was cut or ordered, and whatever the cache had forgotten.
    """

    def __init__(self, expected: int = 0) -> None:
        """expected: how many numbers there may be; more are taken too."""
        self._places = array("Q", [0]) * (1 << (3 * expected // 2).bit_length())
        self._count = 0

    def add(self, key: int) -> bool:
        """Returns whether it was missing."""
        if 3 * self._count >= 2 * len(self._places):
            self._grow()
        at = self._place_of(key)
        if self._places[at]:
            return False
        self._places[at] = key
        self._count += 1
        return True

    def _place_of(self, key: int) -> int:
        """Where it is, or may be put. The keys are hashes already."""
        places = self._places
        mask = len(places) - 1
        at = key & mask
        while places[at] and places[at] != key:
            at = at + 1 & mask
        return at

    def _grow(self) -> None:
        before = self._places
        self._places = array("Q", [0]) * (2 * len(before))
        for key in before:
            if key:
                self._places[self._place_of(key)] = key
