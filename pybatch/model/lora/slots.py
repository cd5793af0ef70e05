"""The adapters that a decoder has in memory."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch import Tensor

from pybatch import ops
from pybatch.machine.ranks import Ranks, Stages
from pybatch.model.checkpoints.adapter import Adapter, LowRank
from pybatch.model.decoder import Decoder
from pybatch.model.errors import ModelError
from pybatch.model.families import FAMILIES
from pybatch.model.layers import NormedLinear
from pybatch.model.lora.layout import Layout, Projection, layouts, projections
from pybatch.model.lora_linear import LoraLinear
from pybatch.model.role_tensors import Checkpoint
from pybatch.model.tensors import changed
from pybatch.ops import Lora


@dataclass(frozen=True, slots=True)
class _Place:
    """Of a projection's adapters. rows: of the columns of each panel, as Layout.panels has them."""

    layout: Layout
    lora: Lora
    rows: Tensor
    column_scale: Tensor | None  # [K]: by what the projection's input has been divided


class AdapterSlots:
    """Room for so many adapters of a decoder, whose projections are exchanged for such as take them.

    ranks, stages: of which the decoder is one's: then what it has of an adapter's changes is kept. max_rank: of an
    adapter's matrices. dtype: in which they are kept; sums are float32 in any case.
    """

    def __init__(
        self,
        decoder: Decoder,
        checkpoint: Checkpoint,
        ranks: Ranks | None = None,
        stages: Stages | None = None,
        *,
        count: int,
        max_rank: int,
        dtype: torch.dtype,
    ) -> None:
        self.count, self.max_rank, self.dtype, self.name = count, max_rank, dtype, decoder.config.name
        self._head = FAMILIES[decoder.config.family].tensor("lm_head")
        self._places: list[_Place] = []
        rank = -(-max_rank // ops.PANEL) * ops.PANEL
        inputs = _norms(decoder)
        made: dict[int, LoraLinear] = {}
        tables: dict[tuple[int, ...], Tensor] = {}  # of layers that are alike one, which is then checked once

        def empty(*shape: int) -> Tensor:
            return torch.empty(shape, dtype=dtype, device=decoder.device)

        of_head = set(map(id, projections(decoder.head)))
        for projection, layout in layouts(decoder, checkpoint, ranks, stages):
            interleaved = layout.gated and not hasattr(projection, "parts")
            table, rows = layout.panels(interleaved=interleaved)
            table = tables.setdefault(tuple(table.flatten().tolist()), table.to(decoder.device))
            parts, width = len(layout.modules), len(layout.columns)
            own = torch.zeros(count, parts, dtype=torch.int32, device=decoder.device)
            a, b = empty(count, parts, rank // ops.PANEL, width, ops.PANEL), empty(count, len(table), rank, ops.PANEL)
            lora = Lora(a, b, own, table)
            step = decoder.last_adapters if id(projection) in of_head else decoder.adapters
            made[id(projection)] = LoraLinear(projection, lora, step)
            self._places.append(_Place(layout, lora, rows, _column_scale(layout, inputs.get(id(projection)))))

        def wrapped(projection: Projection) -> Projection | LoraLinear:
            return made.get(id(projection), projection)

        decoder.layers = changed(decoder.layers, Projection, wrapped)  # type: ignore[arg-type]
        decoder.head = changed(decoder.head, Projection, wrapped)  # type: ignore[arg-type]
        self._modules = {module for place in self._places for module in place.layout.modules}

    def check(self, adapter: Adapter) -> None:
        """Raises ModelError for one that does not fit."""
        self.expect_no_others(adapter, self.others(adapter))

    def expect_no_others(self, adapter: Adapter, others: Collection[str]) -> None:
        """Raises ModelError for the first of these modules, which are those that no process has."""
        for module in others:
            raise ModelError(
                f"{adapter.directory}: changes {module}, which requests cannot choose in {self.name}: projections "
                "of its layers outside of experts can be changed so, and lm_head; others where the adapter is "
                "merged as the model loads (adapter)"
            )

    def others(self, adapter: Adapter) -> list[str]:
        """The modules that an adapter changes and that are not here. Raises ModelError for one that does not fit what
        is here."""
        for module, change in adapter.changes.items():
            what = f"{adapter.directory}: {module}"
            if change.magnitude is not None:
                raise ModelError(
                    f"{what}: use_dora is known only where the adapter is merged as the model loads (adapter)"
                )
            if (rank := change.right.shape[0]) > self.max_rank:
                raise ModelError(f"{what}: expected a rank of at most max_lora_rank = {self.max_rank}, got {rank}")
        changes = self._changes(adapter)
        for place in self._places:
            for module in place.layout.modules:
                if module in changes:
                    self._check_shape(adapter, module, changes[module], place.layout)
        return [module for module in adapter.changes if self._name(module) is None]

    def _check_shape(self, adapter: Adapter, module: str, change: LowRank, layout: Layout) -> None:
        expected = layout.heights[layout.modules.index(module)], int((layout.columns >= 0).sum())
        found = change.left.shape[0], change.right.shape[1]
        if found != expected:
            raise ModelError(
                f"{adapter.directory}: {module}: is for a matrix of {list(found)}, and {self.name} has one of "
                f"{list(expected)}"
            )

    def _changes(self, adapter: Adapter) -> dict[str, LowRank]:
        """Of modules that are here, by their names in the checkpoint."""
        named = ((self._name(module), change) for module, change in adapter.changes.items())
        return {name: change for name, change in named if name is not None}

    def _name(self, module: str) -> str | None:
        names = (module, f"model.{module}", self._head if module == "lm_head" else module)
        return next((each for each in names if each in self._modules), None)

    def load(self, slot: int, adapter: Adapter) -> None:
        """Puts an adapter that has been checked in the place of what is in the slot."""
        changes = self._changes(adapter)
        for place in self._places:
            ranks, table = place.lora.ranks, place.lora.panels.cpu()
            b = torch.zeros(place.lora.b.shape[1:], dtype=torch.float64)
            own = torch.zeros(ranks.shape[1], dtype=torch.int32)
            for part, module in enumerate(place.layout.modules):
                if module not in changes:
                    continue
                change = changes[module]
                rank = own[part] = change.right.shape[0]
                right = torch.cat([change.right, change.right.new_zeros(int(rank), 1)], 1)[:, place.layout.columns]
                if place.column_scale is not None:
                    right = right * place.column_scale
                place.lora.a[slot, part] = ops.pack_lora_a(right, b.shape[1]).to(place.lora.a.dtype)
                left = torch.cat([change.left, change.left.new_zeros(1, int(rank))])
                mine = table[:, 2] == part
                b[mine, : int(rank)] = left[place.rows[mine]].transpose(1, 2)
            if own.any():
                place.lora.b[slot] = b
            ranks[slot] = own


def _norms(decoder: Decoder) -> dict[int, Tensor]:
    """By the projections behind them, the weights of norms as they are used."""
    found: dict[int, Tensor] = {}

    def keep(normed: NormedLinear) -> NormedLinear:
        if normed.norm is not None:
            found[id(normed.linear)] = normed.norm.weight
        return normed

    changed(decoder.layers, NormedLinear, keep)
    return found


def _column_scale(layout: Layout, weight: Tensor | None) -> Tensor | None:
    """SmoothQuant has divided the norm's weight by it, and multiplied the projection's columns."""
    if layout.norm is None or weight is None:
        return None
    before, used = layout.norm.double(), weight.cpu().double()
    scale = torch.where(used != 0, before / used, 1.0)
    return None if bool((scale == 1).all()) else scale
