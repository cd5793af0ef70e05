"""Which tokens each sequence of a batch may draw next, as bit sets for ops.sample."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from pybatch.engine.scheduling.sequence import Sequence
from pybatch.engine.structured.matcher import Matcher, fill_masks


class BatchMasks:
    """Of the rows of a batch whose sequences have a grammar or allowed tokens; the others have no mask."""

    def __init__(self, sequences: list[Sequence], vocab_size: int, device: torch.device) -> None:
        params = [sequence.request.params for sequence in sequences]
        rows = [i for i, p in enumerate(params) if p.masked]
        self._device = device
        self._masks = torch.zeros(
            len(rows), -(-vocab_size // 32), dtype=torch.int32, pin_memory=device.type == "cuda" and bool(rows)
        )
        self._followed: dict[Sequence, list[int]] = {}  # by sequence with a grammar, its rows here and in the batch
        self._allowed: list[tuple[int, Tensor]] = []  # rows here whose sequence has allowed tokens
        for row, i in enumerate(rows):
            if params[i].structured_outputs is not None:
                self._followed.setdefault(sequences[i], [row, i])
            if (allowed := params[i].allowed) is not None:
                self._allowed.append((row, torch.from_numpy(allowed)))
                self._masks[row] = self._allowed[-1][1]
        self._row_of = {i: row for row, i in enumerate(rows)}
        drawn = [-1 if p.beam_width else self._row_of.get(i, -1) for i, p in enumerate(params)]
        self.rows = np.array(drawn, np.int64)  # of the batch's rows; -1: any token may be drawn

    def __bool__(self) -> bool:
        return len(self._masks) > 0

    @property
    def follow_grammars(self) -> bool:
        """Whether they are to be filled for each token."""
        return bool(self._followed)

    def fill(self, drafts: list[tuple[int, ...]] | None) -> None:
        """For each row's next token. drafts: of each row of the batch those between its sequence's tokens and that one;
        rows of one sequence come one after the other, each with one more. None: none of any."""
        places = [(matcher_of(sequence), row) for sequence, (row, _) in self._followed.items()]
        following = None if drafts is None else [_last(drafts, i) for _, i in self._followed.values()]
        fill_masks(self._masks, places, following)
        for row, allowed in self._allowed:
            self._masks[row] &= allowed

    def forbid(self, logits: Tensor, rows: list[int]) -> None:
        """Sets the logits of tokens that these rows of the batch do not allow to -inf. logits: a row for each."""
        for row, values in zip(rows, logits, strict=True):
            if (place := self._row_of.get(row)) is not None:
                bits = np.unpackbits(self._masks[place].numpy().view(np.uint8), count=len(values), bitorder="little")
                values.masked_fill_(torch.from_numpy(bits == 0).to(values.device), -torch.inf)

    def on_device(self) -> Tensor:
        return self._masks.to(self._device, non_blocking=True)


def _last(drafts: list[tuple[int, ...]], first: int) -> tuple[int, ...]:
    """Of the rows from `first` on that belong to one sequence, the drafts of the last."""
    last = first
    while last + 1 < len(drafts) and len(drafts[last + 1]) > len(drafts[last]):
        last += 1
    return drafts[last]


def matcher_of(sequence: Sequence) -> Matcher:
    """The sequence's place in its grammar, made from its tokens if it has none."""
    if sequence.matcher is None:
        grammar = sequence.request.grammar
        assert grammar is not None
        sequence.matcher = grammar.copy()
        sequence.matcher.accept(sequence.output.tolist())
    return sequence.matcher
