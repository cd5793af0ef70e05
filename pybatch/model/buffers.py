"""The matrices that a step works in, kept from step to step."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

GROWTH = 16  # they grow in steps of this many rows

Widths = Mapping[str, int]


class Buffers:
    """Matrices by name, of dtype unless another is asked for, of as many rows as the step has tokens. They grow to the
    most rows ever asked for, and move when they do; otherwise the same name and width is the same memory in every step,
    as graphs need it.

    widths: the widest that each name is asked for, in elements of dtype. counters: how many of ops.paged_attention's a
    row has.
    """

    def __init__(
        self, widths: Widths, dtype: torch.dtype, device: torch.device, rows: int = 0, counters: int = 0
    ) -> None:
        self._widths, self._dtype, self._device, self._counters_a_row = widths, dtype, device, counters
        self._capacity, self._rows = 0, 0
        self._views: dict[tuple[str, int, torch.dtype], Tensor] = {}
        self._storage = self._allocate(rows)

    def _allocate(self, rows: int) -> dict[str, Tensor]:
        self._capacity = rows
        self.counters = torch.zeros(1 + rows * self._counters_a_row, dtype=torch.int32, device=self._device)
        return {
            name: torch.empty(rows * width, dtype=self._dtype, device=self._device)
            for name, width in self._widths.items()
        }

    def resize(self, rows: int) -> None:
        """The rows of what `of` gives from now on."""
        if rows == self._rows:
            return
        self._rows, self._views = rows, {}
        if rows > self._capacity:
            self._storage = {}  # frees the smaller ones first
            self._storage = self._allocate(-(-rows // GROWTH) * GROWTH)

    def of(self, name: str, width: int, dtype: torch.dtype | None = None) -> Tensor:
        """[rows, width]"""
        dtype = dtype or self._dtype
        view = self._views.get((name, width, dtype))
        if view is None:
            view = self._storage[name].view(dtype)[: self._rows * width].view(self._rows, width)
            self._views[name, width, dtype] = view
        return view


def widest(*each: Widths) -> dict[str, int]:
    found: dict[str, int] = {}
    for widths in each:
        for name, width in widths.items():
            found[name] = max(found.get(name, 0), width)
    return found
