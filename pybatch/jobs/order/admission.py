"""The order in which a job's rows enter the engine."""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Sequence
from typing import Generic, TypeVar

from pybatch.engine.pooling_params import Params
from pybatch.jobs.order.prefix_tree import Leaf, by_density

T = TypeVar("T")


def most_output(params: Params) -> int | None:
    """The tokens of all samples together, as far as they are bounded: what is expected of a row that is to wait."""
    return None if params.max_tokens is None else params.max_tokens * params.num_sequences


class _Waiting(Leaf, Generic[T]):
    __slots__ = ("item", "size")

    def __init__(self, item: T, size: int, token_ids: Sequence[int], output: int | None, number: int) -> None:
        super().__init__(token_ids, output, number)
        self.item = item
        self.size = size + len(self.tokens)


class AdmissionOrder(Generic[T]):
    """Holds rows that wait, a bounded number, and gives them out in an order that suits the engine.

    Rows that share a prefix come one after the other, so that the prefix is computed once and found in the cache before
    it is evicted (a row finds what another one of the same step is to compute). Two such sequences are merged, one from
    the rows that need the most compute for the KV memory they hold, one from those that need the least, so that at any
    time both are used in the proportion in which all need them (the dual scanner of BlendServe, Zhao et al. 2024). Rows
    between which there is nothing to choose keep their order.

    Rows are planned in generations of at most max_rows, all given out before any of the next, so that fewer than
    2 * max_rows others go before a row that waits. Rows that come while a generation is not full join it: no row need
    be held back until the window has filled.

    max_rows, max_bytes: bounds on what waits. block_size: the prefix cache's, in tokens.
    """

    def __init__(self, *, block_size: int, max_rows: int = 4096, max_bytes: int = 32 << 20) -> None:
        self._block_size, self._max_rows, self._max_bytes = block_size, max_rows, max_bytes
        self._new: list[_Waiting[T]] = []  # not planned yet
        self._order: deque[_Waiting[T]] = deque()
        self._generation = 0  # rows of this generation, those given out included
        self._pushed = self._bytes = 0
        self._compute = self._memory = 0  # of all in the plan
        self._surplus = 0  # compute given out beyond its proportion to memory, times self._memory

    def __len__(self) -> int:
        return len(self._new) + len(self._order)

    @property
    def has_room(self) -> bool:
        """Whether another row may be pushed. One always may if none waits."""
        return not len(self) or (len(self) < self._max_rows and self._bytes < self._max_bytes)

    def push(self, item: T, token_ids: Sequence[int], output_tokens: int | None = None, size: int = 0) -> None:
        """output_tokens: how many are expected; None if not known. size: of the item, in bytes."""
        waiting = _Waiting(item, size, token_ids, output_tokens, self._pushed)
        self._pushed += 1
        self._bytes += waiting.size
        self._new.append(waiting)

    def pop(self) -> tuple[T, array[int]]:
        """The next row and its token ids. Raises IndexError if none waits."""
        if self._new:
            self._plan()
        waiting = self._order.pop() if self._surplus > 0 else self._order.popleft()
        self._surplus += waiting.own_compute * self._memory - waiting.memory * self._compute
        self._bytes -= waiting.size
        return waiting.item, waiting.token_ids

    def _plan(self) -> None:
        """Begins a generation when the last one has ended, or lets new rows join if they are as many as are left of it:
        then a row is planned twice on average, whenever it comes."""
        if not self._order:
            self._generation = 0
        joining = min(len(self._new), self._max_rows - self._generation)
        if joining < max(1, len(self._order)):
            return
        self._generation += joining
        rows = [*self._order, *self._new[:joining]]
        del self._new[:joining]
        self._order = deque(by_density(rows, self._block_size))
        self._compute = sum(row.own_compute for row in rows)
        self._memory = sum(row.memory for row in rows)
        self._surplus = 0
