"""A checkpoint's tensors, by the roles that they have in a decoder's blocks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from pybatch.model.config import ModelConfig
from pybatch.model.errors import ModelError
from pybatch.model.families import FAMILIES
from pybatch.model.packing import kind_of
from pybatch.model.pooling import PoolingConfig
from pybatch.model.rows import Heads, MatrixStack, Rows, Transposed, filled_columns, sliced, transposed, turned
from pybatch.model.rows import grouped as in_groups


class Grouped(NamedTuple):
    """A tensor with the rows of several roles: those of all roles for the first group, then for the next. groups: None
    where it has all rows of a role one below the other, whoever shares them."""

    roles: tuple[str, ...]
    groups: int | None


class Checkpoint(Protocol):
    """Tensors under their Hugging Face names, mapped from a file and not yet read."""

    config: ModelConfig

    generation_config: dict[str, Any]  # of generation_config.json

    pooling: PoolingConfig

    def __contains__(self, name: str) -> bool: ...

    def __getitem__(self, name: str) -> Rows: ...

    def unread(self) -> list[str]: ...  # the tensors that have not been read

    @property
    def quantized(self) -> bool: ...  # matrices are kept in their own bits where nothing else is asked for

    def files(self) -> list[Path]: ...  # that weights, or how to read them, come from

    def tell(self) -> None: ...  # logs in which bits the matrices run, where they are to keep their own


class RoleTensors:
    """Finds tensors, whichever way a family has them: under names of its own, several roles in one tensor, heads in
    another order. Raises ModelError if one is missing or not of the shape that is asked for.

    dtype, device: of what is read at once; Rows are read when they are packed.
    """

    def __init__(self, checkpoint: Checkpoint, dtype: torch.dtype, device: torch.device) -> None:
        self.checkpoint, self.config = checkpoint, checkpoint.config
        self.family = FAMILIES[self.config.family]
        self.dtype, self.device = dtype, device

    def vector(
        self, role: str, length: int, layer: int | None = None, suffix: str = ".weight", *, turning: int = 0
    ) -> Tensor:
        """turning: of a vector over a head's elements, how many of them are rotated."""
        rows = self.tensor(self.family.tensor(role, layer) + suffix, (length,))
        return self._on_device(turned(rows, 1, turning) if turning and self.family.adjacent_pairs else rows)

    def vectors(self, role: str, heads: Heads, layer: int) -> Tensor:
        """[heads, elements]: one for each head, in a tensor each or in one of all."""
        name = self.family.tensor(role, layer)
        whole = f"{name.replace('.norms.{}', '')}.weight"
        if whole in self.checkpoint:
            found = self.tensor(whole, (heads.count, heads.dim))[0 : heads.count]
        else:
            each = [self.tensor(f"{name.format(head)}.weight", (heads.dim,)) for head in range(heads.count)]
            found = torch.stack([one[0 : heads.dim] for one in each])
        if self.family.adjacent_pairs:
            pairs = found[:, : heads.rotary_dim].reshape(heads.count, -1, 2).transpose(1, 2).flatten(1)
            found = torch.cat([pairs, found[:, heads.rotary_dim :]], dim=1)
        return found.to(self.device, self.dtype, copy=True)

    def stack(self, role: str, shape: tuple[int, int, int], layer: int) -> Rows:
        """The rows of matrices that lie in one tensor, one below the other."""
        return self._stack(f"{self.family.tensor(role, layer)}.weight", shape)

    def exact(self, role: str, shape: tuple[int, ...], layer: int, suffix: str = ".weight") -> Tensor:
        """A small tensor in float32, whatever the activations are."""
        rows = self.tensor(self.family.tensor(role, layer) + suffix, shape)
        return rows[0 : shape[0]].to(self.device, torch.float32, copy=True)

    def exact_of_heads(
        self, role: str, counts: Sequence[int], layer: int, suffix: str = "", *, rest: tuple[int, ...] = ()
    ) -> Tensor:
        """As exact, of a tensor [sum(counts), *rest] of what belongs to heads, so many rows of each kind."""
        return self.exact(role, (sum(counts), *rest), layer, suffix)

    def ones(self, width: int) -> Tensor:
        return torch.ones(width, dtype=self.dtype, device=self.device)

    def number(self, role: str, layer: int) -> float:
        """The one that a tensor has."""
        return float(self.tensor(self.family.tensor(role, layer), (1,))[0:1])

    def tensor(self, name: str, shape: tuple[int, ...]) -> Rows:
        config = self.config
        if name not in self.checkpoint:
            raise ModelError(f"{config.name} has no tensor {name!r}, which {config.architecture} needs")
        tensor = self.checkpoint[name]
        if tuple(tensor.shape) != shape:
            raise ModelError(f"{config.name}: {name}: expected shape {list(shape)}, got {list(tensor.shape)}")
        return tensor

    def _parts(
        self,
        rows: Mapping[str, int],
        layer: int | None,
        suffix: str,
        columns: tuple[int, ...],
        fused: str,
        grouped: Mapping[str, Grouped] | None = None,
    ) -> list[Rows]:
        """A tensor for each role."""
        family = self.family
        found: dict[str, Rows] = {}
        for name, (roles, groups) in (grouped or {}).items():
            if family.has(name) and all(role in rows for role in roles):
                counts = [rows[role] for role in roles]
                whole = self.tensor(family.tensor(name, layer) + suffix, (sum(counts), *columns))
                groups = groups or 1
                for role, count, end in zip(roles, counts, accumulate(counts), strict=True):
                    found[role] = in_groups(whole, groups, (end - count) // groups, end // groups)
        if not family.has(fused):
            return [
                found[role]
                if role in found
                else self._matrix(family.tensor(role, layer) + suffix, (n, *columns), layer)
                for role, n in rows.items()
            ]
        whole = self._matrix(family.tensor(fused, layer) + suffix, (sum(rows.values()), *columns), layer)
        ends = list(accumulate(rows.values()))
        return [sliced(whole, end - n, end) for n, end in zip(rows.values(), ends, strict=True)]

    def _matrix(self, name: str, shape: tuple[int, ...], layer: int | None) -> Rows:
        if self.family.by_input and layer is not None and len(shape) == 2:
            return transposed(self.tensor(name, shape[::-1]))
        return self.tensor(name, shape)

    def _outputs(
        self, rows: Mapping[str, int], columns: int | Heads, layer: int | None, *, bias: bool, fused: str = ""
    ) -> tuple[list[Rows], list[Rows]]:
        """The weights and the biases of projections of what these columns are; none without bias."""
        biases = self._parts(rows, layer, ".bias", (), fused) if bias else []
        if isinstance(columns, int):
            return self._parts(rows, layer, ".weight", (columns,), fused), biases
        stored = self._parts(rows, layer, ".weight", (columns.stored_width,), fused)
        return [filled_columns(part, columns) for part in stored], biases

    def _expert_rows(
        self, count: int, roles: Mapping[str, int], columns: int, layer: int, whole: str
    ) -> list[list[Rows]]:
        """Of each expert a matrix for each role. There is one tensor for each; or one for all experts; or, as
        transformers has them in memory, one for all experts and roles, with those of an expert one below the other, or
        by turns (Family.experts_by_turns)."""
        name, total = self.family.tensor(whole, layer), sum(roles.values())
        if name in self.checkpoint:
            rows, ends = (
                self._stack(name, (count, total, columns), by_input=self.family.experts_by_input),
                list(accumulate(roles.values())),
            )
            each = [sliced(rows, e * total, (e + 1) * total) for e in range(count)]
            if self.family.experts_by_turns:
                turns = range(len(roles))
                return [[in_groups(own, total // len(roles), turn, turn + 1) for turn in turns] for own in each]
            sizes = list(zip(roles.values(), ends, strict=True))
            return [[sliced(own, end - n, end) for n, end in sizes] for own in each]
        of_roles = [self._role_of_experts(role, count, n, columns, layer) for role, n in roles.items()]
        return [list(parts) for parts in zip(*of_roles, strict=True)]

    def _role_of_experts(self, role: str, count: int, n: int, columns: int, layer: int) -> list[Rows]:
        name = f"{self.family.tensor(role, layer)}.weight"
        if (merged := name.replace(".{}", "")) in self.checkpoint:  # a GGUF file's
            rows = self._stack(merged, (count, n, columns))
            return [sliced(rows, e * n, (e + 1) * n) for e in range(count)]
        return [self.tensor(name.format(e), (n, columns)) for e in range(count)]

    def _expert_biases(self, count: int, roles: Mapping[str, int], layer: int, whole: str) -> list[Tensor]:
        """[count, outputs] of each role."""
        name, total = f"{self.family.tensor(whole, layer)}_bias", sum(roles.values())
        if name in self.checkpoint:
            biases = self._on_device(self.tensor(name, (count, total)))
            if self.family.experts_by_turns:
                return [biases[:, turn :: len(roles)] for turn in range(len(roles))]
            return list(biases.split_with_sizes(list(roles.values()), dim=1))
        names = {f"{self.family.tensor(role, layer)}.bias".replace(".{}", ""): n for role, n in roles.items()}
        return [self._on_device(self.tensor(name, (count, n))) for name, n in names.items()]

    def _stack(self, name: str, shape: tuple[int, int, int], *, by_input: bool = False) -> Rows:
        """by_input: of a tensor that is not quantised, the matrices are transposed."""
        count, n, k = shape
        stack = self.checkpoint[name]
        if not isinstance(stack, MatrixStack):
            raise ModelError(
                f"{self.config.name}: {name}: expected a tensor of three dimensions that can be read by rows"
            )
        if by_input and kind_of(stack.flattened()) is None:
            return Transposed(self.tensor(name, (count, k, n)))
        self.tensor(name, shape)
        return stack.flattened()

    def _on_device(self, vector: Rows) -> Tensor:
        return vector[0 : vector.shape[0]].to(self.device, self.dtype, copy=True)
