"""What waits, of one priority, in an order that is fair to users and knows deadlines."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from heapq import heappop, heappush, heapreplace, merge
from itertools import count
from typing import Generic, Protocol, TypeVar

NO_WEIGHTS: Mapping[str, float] = {}
OUTPUT_WEIGHT = 2  # of a token of output, of 1 for one of a prompt, as in Sheng et al.

PATIENCE = 60.0  # seconds, the target of what has none, so that others do not pass it for ever


class Queued(Protocol):
    """user: whose it is. urgent: it has a target. deadline: by which it is due, in seconds; of what is not urgent in
    the order of arrival. queued: counts up as they come. size: how much its user is served with it, such as tokens."""

    @property
    def user(self) -> str | None: ...

    @property
    def urgent(self) -> bool: ...

    @property
    def deadline(self) -> float: ...

    @property
    def queued(self) -> int: ...

    @property
    def size(self) -> float: ...


T = TypeVar("T", bound=Queued)


def _urgency(item: Queued) -> tuple[float, int]:
    return item.deadline, item.queued


class UserQueue(Generic[T]):
    """One user's: the earliest deadline first, and of equal ones in order of arrival."""

    __slots__ = ("_in_order", "_urgent")

    def __init__(self) -> None:
        self._in_order: OrderedDict[T, None] = OrderedDict()  # whose deadlines are in the order of arrival
        self._urgent: list[T] = []

    def __bool__(self) -> bool:
        return bool(self._in_order or self._urgent)

    def __iter__(self) -> Iterator[T]:
        return merge(self._urgent, self._in_order, key=_urgency) if self._urgent else iter(self._in_order)

    def __contains__(self, item: T) -> bool:
        if not item.urgent:
            return item in self._in_order
        at = self._index(item)
        return at < len(self._urgent) and self._urgent[at] is item

    def add(self, item: T) -> None:
        if item.urgent:
            insort(self._urgent, item, key=_urgency)
        else:
            self._in_order[item] = None

    def remove(self, item: T) -> None:
        if item.urgent:
            del self._urgent[self._index(item)]
        else:
            del self._in_order[item]

    def _index(self, item: T) -> int:
        return bisect_left(self._urgent, _urgency(item), key=_urgency)


class FairQueue(Generic[T]):
    """The next is always of the user who has been served least (virtual token counters, Sheng et al. 2024): a prompt's
    token counts 1, one of output OUTPUT_WEIGHT, when it is computed for the first time, over the user's weight. Who
    comes back after having had nothing to do starts from where the others are, and has saved nothing up. So of any two
    users who both have requests waiting all the time, neither gets more than about a batch's tokens ahead of its share,
    which is in proportion to its weight.

    weights: of users, above 0; others have 1. Nothing takes longer the more waits, or the more users wait, but for
    a logarithm.
    """

    __slots__ = ("_floor", "_heap", "_number", "_numbers", "_served", "_users", "_weights")

    def __init__(self, weights: Mapping[str, float] = NO_WEIGHTS) -> None:
        self._weights = weights
        self._users: dict[str | None, UserQueue[T]] = {}
        self._served: dict[str | None, float] = {}
        self._floor = 0.0  # what those who wait have been served at least
        # Users by what they had been served when they were put here, which is never more than they have been by now.
        self._heap: list[tuple[float, int, str | None]] = []
        self._numbers = count()
        self._number: dict[str | None, int] = {}  # of the only entry in the heap that counts, of those who wait

    def __bool__(self) -> bool:
        return bool(self._users)

    def __contains__(self, item: T) -> bool:
        queue = self._users.get(item.user)
        return queue is not None and item in queue

    def __iter__(self) -> Iterator[T]:
        """In order, as if each were served as it comes."""
        if len(self._users) == 1:
            (queue,) = self._users.values()
            yield from queue
            return
        self._settle()
        queues: dict[str | None, Iterator[T]] = {}
        ahead: list[tuple[float, int, str | None, int]] = []  # with the place in the heap, or -1
        if self._heap:
            ahead = [(*self._heap[0], 0)]
        while ahead:
            served, number, user, place = heappop(ahead)
            if place >= 0:  # those below it in the heap may be next
                for below in (2 * place + 1, 2 * place + 2):
                    if below < len(self._heap):
                        heappush(ahead, (*self._heap[below], below))
                if self._number.get(user) != number:
                    continue
                if served < self._served[user]:
                    heappush(ahead, (self._served[user], number, user, -1))
                    continue
            if user not in queues:
                queues[user] = iter(self._users[user])
            item = next(queues[user], None)
            if item is not None:
                yield item
                heappush(ahead, (served + self._share(user, item.size), number, user, -1))

    def add(self, item: T) -> None:
        user = item.user
        queue = self._users.get(user)
        if queue is None:
            self._settle()
            queue = self._users[user] = UserQueue[T]()
            served = self._served[user] = max(self._served.get(user, 0.0), self._floor)
            number = self._number[user] = next(self._numbers)
            heappush(self._heap, (served, number, user))
            if len(self._heap) > 2 * len(self._users) + 64:
                self._forget()
        queue.add(item)

    def remove(self, item: T) -> None:
        user = item.user
        queue = self._users[user]
        queue.remove(item)
        if not queue:
            del self._users[user], self._number[user]

    def charge(self, user: str | None, tokens: float) -> None:
        if user in self._served:
            self._served[user] += self._share(user, tokens)

    def served(self, user: str | None) -> float:
        """In tokens over the user's weight, since somebody has been waiting."""
        return self._served.get(user, 0.0)

    def _share(self, user: str | None, tokens: float) -> float:
        return tokens if user is None else tokens / self._weights.get(user, 1.0)

    def _settle(self) -> None:
        """Has the user who has been served least on top of the heap."""
        while self._heap:
            served, number, user = self._heap[0]
            if self._number.get(user) != number:
                heappop(self._heap)
            elif served < self._served[user]:
                heapreplace(self._heap, (self._served[user], number, user))
            else:
                self._floor = max(self._floor, served)
                return

    def _forget(self) -> None:
        """Drops those who have nothing waiting, and have been served no more than they would start from."""
        self._heap = sorted((self._served[user], number, user) for user, number in self._number.items())
        self._served = {user: t for user, t in self._served.items() if user in self._users or t > self._floor}
