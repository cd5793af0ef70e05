"""Sums of the attention that cached tokens have had, for sequences that are pruned by them."""

from __future__ import annotations

import torch
from torch import Tensor

from pybatch.engine.scheduling.sequence import Sequence
from pybatch.engine.scheduling.step import Chunk
from pybatch.model.batch import Observed

_STEP = 256  # tokens by which the rows grow


class AttentionMass:
    """Rows of one tensor, as the scheduler numbers them. A sequence has two: a step reads the sums so far from one and
    writes to the other, so that it can be computed again if it fails."""

    def __init__(self, num_layers: int, kv_heads: int, device: torch.device) -> None:
        self._sums = torch.empty(0, num_layers, kv_heads, 0, dtype=torch.float32, device=device)

    def observed(self, chunks: list[Chunk]) -> Observed | None:
        """What a step is to sum; None if nothing."""
        if all(chunk.sequence.mass_rows is None for chunk in chunks):
            return None
        first, sources, rows, start, longest = [], [], [], 0, 0
        for chunk in chunks:
            sequence, end = chunk.sequence, start + chunk.num_tokens
            skipped, source, row = chunk.num_tokens, -1, -1
            if sequence.mass_rows is not None and sequence.request.pruning is not None:
                begin = sequence.request.pruning.observed_from
                skipped = min(max(begin - sequence.num_computed, 0), chunk.num_tokens)
                known, row = sequence.mass_rows
                source = known if sequence.num_computed > begin else -1
                longest = max(longest, sequence.num_cached + chunk.num_tokens)
            first.append(start + skipped)
            sources.append(source)
            rows.append(row)
            start = end
        self._grow(1 + max(rows), longest)
        device = self._sums.device
        numbers = torch.tensor([first, sources, rows], dtype=torch.int32).to(device)
        return Observed(numbers[0], numbers[1], numbers[2], self._sums)

    def of(self, row: int, length: int) -> Tensor:
        """[layers, kv_heads, length], a view."""
        return self._sums[row, :, :, :length]

    def copy(self, source: Sequence, destination: Sequence) -> None:
        """A sequence that goes on from another's tokens has its sums too."""
        if source.mass_rows is not None and destination.mass_rows is not None:
            length = source.num_cached
            self._grow(1 + destination.mass_rows[0], length)
            self.of(destination.mass_rows[0], length).copy_(self.of(source.mass_rows[0], length))

    def _grow(self, rows: int, length: int) -> None:
        count, layers, heads, capacity = self._sums.shape
        if rows <= count and length <= capacity:
            return
        rows, length = max(2 * count if rows > count else count, rows), max(-(-length // _STEP) * _STEP, capacity)
        sums = self._sums.new_empty(rows, layers, heads, length)
        sums[:count, :, :, :capacity] = self._sums
        self._sums = sums
