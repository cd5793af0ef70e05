"""Where the rows and columns of a checkpoint's matrices are in a decoder's projections.

A WeightLoader joins matrices, takes them apart, and puts their rows in the order of the kernels. Here it does so with
the numbers of rows in place of weights, and so tells, for every family, what an adapter's matrices have to become.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from pybatch import ops
from pybatch.machine.ranks import Ranks, Stages
from pybatch.model.build import build_decoder
from pybatch.model.config import MoEConfig
from pybatch.model.decoder import Decoder
from pybatch.model.layers import DenseLinear, GGUFLinear, Linear, NormedLinear, Packed, ScaledLinear, SideBySide
from pybatch.model.role_tensors import Checkpoint, Grouped
from pybatch.model.rows import Heads, Rows, sliced
from pybatch.model.sharded import ShardedHead
from pybatch.model.shards import Shards
from pybatch.model.tensors import changed
from pybatch.model.weights import WeightLoader

Projection = DenseLinear | ScaledLinear | GGUFLinear | SideBySide


@dataclass(frozen=True, slots=True)
class Layout:
    """Of a projection. modules: of the checkpoint, those whose matrices it is made of. rows: of each of its roles, the
    module, a number in modules, and the row there of each row, [n, 2]; -1: it is filled with zeros. columns: likewise
    the column. norm: the weight of the norm in front, as the checkpoint has it. gated: the roles are gate and up.
    heights: rows of each module, of which a rank has a share."""

    modules: tuple[str, ...]
    heights: tuple[int, ...]
    rows: tuple[Tensor, ...]
    columns: Tensor  # [K]
    norm: Tensor | None
    gated: bool

    def panels(self, *, interleaved: bool) -> tuple[Tensor, Tensor]:
        """As ops.Lora has them, [panels, 3] int32, and the row in its module of each of their columns, [panels, 16];
        -1: none. interleaved: as ops.interleave_gate_up has them."""
        found: list[tuple[int, int, int, Tensor]] = []
        start = 0
        for role, rows in enumerate(self.rows):
            owner = rows[:, 0].tolist()
            first = 0
            while first < len(owner):
                ahead = owner[first : first + ops.PANEL]
                part = next((each for each in ahead if each >= 0), 0)
                end = first + next((i for i, each in enumerate(ahead) if each not in (part, -1)), len(ahead))
                column = 2 * first + role * ops.PANEL if interleaved else start + first
                found.append((column, end - first, part, rows[first:end, 1]))
                first = end
            start += len(owner)
        found.sort(key=lambda each: each[0])
        table = torch.tensor([each[:3] for each in found], dtype=torch.int32)
        places = torch.full((len(found), ops.PANEL), -1)
        for i, (_, count, _, rows) in enumerate(found):
            places[i, :count] = rows
        return table, places


@dataclass(frozen=True, slots=True)
class _Marked(DenseLinear):
    """In a projection's place. layout: None where adapters cannot change it."""

    layout: Layout | None = None


class _Numbered:
    """The rows of a matrix: the number of its module, and their own."""

    def __init__(self, module: int, rows: int) -> None:
        self._module, self.shape, self.dtype = module, (rows, 2), torch.float64

    def __getitem__(self, rows: slice) -> Tensor:
        numbers = torch.arange(rows.start, rows.stop, dtype=torch.float64)
        return torch.stack([torch.full_like(numbers, self._module), numbers], dim=1) + 1  # zeros are what is filled

    def release(self, rows: slice) -> None:
        pass


class _LayoutLoader(WeightLoader):
    """Makes a decoder of _Marked projections."""

    def __init__(self, checkpoint: Checkpoint, dtype: torch.dtype) -> None:
        super().__init__(checkpoint, dtype, None, torch.device("cpu"))
        self._modules: dict[str, int] = {}  # and their rows

    def head(self, embedding: Packed | None) -> Linear:
        return self.linear({"lm_head": self.config.vocab_size}, self.config.hidden_size)  # a tied one has changes too

    def score(self) -> DenseLinear:
        return _nothing()

    def linear(
        self,
        rows: Mapping[str, int],
        columns: int | Heads,
        layer: int | None = None,
        *,
        bias: bool = False,
        fused: str = "",
    ) -> Packed:
        if "shared_down" in rows and layer is not None:
            mlp = self.config.layers[layer - self.config.first_layer].mlp
            if isinstance(mlp, MoEConfig) and mlp.shared_gate:
                return _nothing()  # a stack of one expert
        if self.has_all(rows, layer):
            return self._marked(lambda: self._parts(rows, layer, ".weight", (0,), fused), columns)
        return self._marked(
            lambda: list(map(self.own, self._parts(rows, layer, ".weight", (0,), fused))), self.whole(columns)
        )

    def one_expert(self, linear: Linear, width: int) -> Linear:
        return linear

    def behind_norm(
        self,
        norm: str,
        rows: Mapping[str, int],
        columns: int,
        layer: int,
        *,
        bias: bool | Sequence[str] = False,
        fused: str = "",
        gated: bool = False,
        heads: Mapping[str, Heads] | None = None,
        grouped: Mapping[str, Grouped] | None = None,
    ) -> NormedLinear:
        def parts() -> list[Rows]:
            return self._arranged(self._own_parts(rows, layer, ".weight", (0,), fused, grouped), rows, heads)

        before = self.norm(norm, columns, layer)
        return NormedLinear(
            before, self._marked(parts, columns, None if before is None else before.weight, gated=gated)
        )

    def router(self, norm: str, role: str, count: int, columns: int, layer: int, *, bias: bool = False) -> NormedLinear:
        return NormedLinear(None, _nothing())

    def experts(self, *arguments: object, **named: object) -> Packed:
        return _nothing()

    def experts_behind_norm(self, *arguments: object, **named: object) -> NormedLinear:
        return NormedLinear(None, _nothing())

    def matrix(self, rows: Rows) -> Packed:
        return _nothing()  # of latent attention's heads

    def vectors(self, role: str, heads: Heads, layer: int) -> Tensor:
        return torch.zeros(heads.count, heads.dim)

    def tensor(self, name: str, shape: tuple[int, ...]) -> Rows:
        if shape[1:] != (0,):
            return super().tensor(name, shape)
        self._modules[name.removesuffix(".weight")] = shape[0]
        return _Numbered(len(self._modules) - 1, shape[0])

    def _matrix(self, name: str, shape: tuple[int, ...], layer: int | None) -> Rows:
        return self.tensor(name, shape)

    def _marked(
        self, parts: Callable[[], list[Rows]], columns: int | Heads, norm: Tensor | None = None, *, gated: bool = False
    ) -> DenseLinear:
        self._modules = {}
        numbers = tuple(part[0 : part.shape[0]].long() - 1 for part in parts())
        modules, heights = tuple(self._modules), tuple(self._modules.values())
        return replace(_nothing(), layout=Layout(modules, heights, numbers, _columns(columns), norm, gated))


class _ShardLayoutLoader(_LayoutLoader, Shards):
    """Of a rank's share."""

    def __init__(self, ranks: Ranks, checkpoint: Checkpoint, dtype: torch.dtype) -> None:
        self.ranks = ranks
        super().__init__(checkpoint, dtype)

    def head(self, embedding: Packed | None) -> Linear:
        (first, last), config = self.own_tokens, self.config
        if first == last:
            return ShardedHead(None, 0, 0, self.ranks)
        parts = partial(self._parts, {"lm_head": config.vocab_size}, None, ".weight", (0,), "")
        own = self._marked(lambda: [sliced(part, first, last) for part in parts()], config.hidden_size)
        return ShardedHead(own, last - first, 0, self.ranks)


def _columns(columns: int | Heads) -> Tensor:
    if isinstance(columns, int):
        return torch.arange(columns)
    stored = torch.arange(columns.stored_width).view(columns.count, columns.stored_dim)
    filled = columns.dim - columns.stored_dim
    return torch.nn.functional.pad(stored, (0, filled), value=-1).flatten()


def _nothing() -> _Marked:
    return _Marked(torch.empty(1, 1), 1)


def layouts(
    decoder: Decoder, checkpoint: Checkpoint, ranks: Ranks | None, stages: Stages | None
) -> Iterator[tuple[Projection, Layout]]:
    """Of the decoder's projections, those that adapters may change: in its layers, and the head. ranks, stages: of
    which it is one's."""
    arguments = checkpoint, decoder.dtype
    load = _LayoutLoader(*arguments) if ranks is None else _ShardLayoutLoader(ranks, *arguments)
    marked = build_decoder(load, 1, stages)
    for part, of_marked in ((decoder.layers, marked.layers), (decoder.head, marked.head)):
        for projection, mark in zip(projections(part), projections(of_marked), strict=True):
            assert isinstance(mark, _Marked)
            if mark.layout is not None:
                yield projection, mark.layout


def projections(part: object) -> list[Projection]:
    """One after another, in the same order for all decoders of a model."""
    found: list[Projection] = []

    def keep(projection: Projection) -> Projection:
        found.append(projection)
        return projection

    changed(part, Projection, keep)  # type: ignore[arg-type]  # a union of classes
    return found
