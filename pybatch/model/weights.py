"""From a checkpoint's tensors to packed weights, by the roles that they have in a decoder's blocks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar, cast

import torch
from torch import Tensor

from pybatch import ops
from pybatch.model.config import ModelConfig
from pybatch.model.errors import ModelError
from pybatch.model.families import FAMILIES
from pybatch.model.layers import (
    DenseLinear,
    Linear,
    Norm,
    NormedLinear,
    NormOfAllHeads,
    Packed,
    as_stack,
)
from pybatch.model.packing import Packer, PackingPlan, kind_of
from pybatch.model.pooling import PoolingConfig
from pybatch.model.rows import (
    Heads,
    Held,
    Interleaved,
    MatrixStack,
    Rows,
    Stacked,
    Transposed,
    filled,
    filled_columns,
    interleaved,
    padded,
    sliced,
    stacked,
    transposed,
    turned,
)
from pybatch.model.rows import grouped as in_groups
from pybatch.model.smoothquant import PackedWhenCalled

INT8_MATMULS = {"int8": ops.matmul_w8a8, "int8-weight-only": ops.matmul_w8a16}
QUANTIZATIONS = (*INT8_MATMULS, "gguf")
Columns = TypeVar("Columns", bound=int | Heads)


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


class WeightLoader:
    """Packs the weights of a checkpoint for the blocks of a decoder (see build.py), by the roles of tensors. Raises
    ModelError if one is missing or not of the shape that is asked for.

    dtype: of activations; dense weights are kept in it, or in the checkpoint's own dtype where that is smaller (a
    bfloat16 weight is the same number in float32). quantization: None, "int8", "int8-weight-only" or "gguf": the
    blocks of a GGUF file as they are, for the types in ops.GGUF_BLOCKS; other tensors as for None. None keeps the bits
    of a quantised checkpoint likewise.
    device: where the decoder is to run.
    advance is called with the number of weights done, from any thread.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        dtype: torch.dtype,
        quantization: str | None,
        device: torch.device,
        advance: Callable[[int], None] = lambda count: None,
    ) -> None:
        self.checkpoint, self.config = checkpoint, checkpoint.config
        self.family = FAMILIES[self.config.family]
        self.dtype, self.device = dtype, device
        self.keeps_bits = quantization == "gguf" or (quantization is None and checkpoint.quantized)
        self.smooths = quantization == "int8"  # scales weights by the activations that they meet
        self._int8_matmul = INT8_MATMULS.get(quantization or "")
        self.packer = Packer(dtype, device, self.keeps_bits, self._int8_matmul, advance)

    def head(self, embedding: Packed | None) -> Linear:
        """The projection to the vocabulary."""
        if self.config.tie_word_embeddings:
            assert embedding is not None
            return embedding
        config = self.config
        return self.linear({"lm_head": config.vocab_size}, config.hidden_size, bias=config.head_bias)

    def score(self) -> DenseLinear:
        """The projection to the labels of a model that classifies."""
        rows = self.tensor("score.weight", (self.config.num_labels, self.config.hidden_size))
        return self.packer.dense(rows, None)

    def norm(self, role: str, width: int, layer: int | None = None) -> Norm | None:
        """None where the family has none."""
        if not self.family.has(role):
            return None
        norm = self.config.norm
        other = self.family.other_names.get(role, role)
        if f"{self.family.tensor(other, layer)}.weight" in self.checkpoint:
            role = other
        weight = self.vector(role, width, layer) if norm.weight else self.ones(width)
        bias = self.vector(role, width, layer, ".bias") if norm.bias else None
        return Norm(weight + norm.offset if norm.offset else weight, norm.eps, norm.kind == "layer", bias)

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

    def linear(
        self,
        rows: Mapping[str, int],
        columns: int | Heads,
        layer: int | None = None,
        *,
        bias: bool = False,
        fused: str = "",
    ) -> Packed:
        """The projections of these roles, with so many rows each, as one. columns: or whose they are. fused: the role
        of a tensor that has them one below the other, in families that have it."""
        weights, biases = self._outputs(rows, columns, layer, bias=bias, fused=fused)
        return self.packer.pack(Stacked(weights), self._bias_of(biases))

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
        """As linear, of the output of a norm; for W8A8 its packing waits for activations. bias: of all, or of these
        roles. gated: the roles are gate and up, and the product's epilogue multiplies them. heads: of roles that have
        some. grouped: by their roles, tensors that have several roles' rows in groups."""
        parts = self._arranged(self._own_parts(rows, layer, ".weight", (columns,), fused, grouped), rows, heads)
        biased = {role: n for role, n in rows.items() if role in bias} if isinstance(bias, Sequence) else rows
        own = self._own_parts(biased, layer, ".bias", (), fused, grouped) if bias else []
        if own and biased != rows:
            found = dict(zip(biased, own, strict=True))
            own = [found.get(role, Held(torch.zeros(n))) for role, n in rows.items()]
        biases = self._bias_of(self._arranged(own, rows, heads), gated)
        before = self.norm(norm, columns, layer)
        if self.keeps_bits and len(set(map(kind_of, parts))) > 1:
            return NormedLinear(before, self.packer.pack_parts(parts, biases))
        together = Interleaved(parts) if gated else Stacked(parts)
        if self.smooths and before is not None:
            return NormedLinear(before, PackedWhenCalled(lambda scale: self.packer.pack(together, biases, scale)))
        return NormedLinear(before, self.packer.pack(together, biases))

    def stack(self, role: str, shape: tuple[int, int, int], layer: int) -> Rows:
        """The rows of matrices that lie in one tensor, one below the other."""
        return self._stack(f"{self.family.tensor(role, layer)}.weight", shape)

    def matrix(self, rows: Rows) -> Packed:
        """A projection of these rows."""
        return self.packer.pack(Stacked([rows]), None)

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

    def router(self, norm: str, role: str, count: int, columns: int, layer: int, *, bias: bool = False) -> NormedLinear:
        """A projection of few rows behind a norm whose results decide: in the checkpoint's own precision."""
        rows = self.tensor(f"{self.family.tensor(role, layer)}.weight", (count, columns))
        added = self.exact(role, (count,), layer, ".bias") if bias else None
        return NormedLinear(self.norm(norm, columns, layer), self.packer.dense(rows, added, rows.dtype))

    def one_expert(self, linear: Linear, width: int) -> Linear:
        """The projection as a stack of one expert; width: of all that share the model."""
        return as_stack(cast("Packed", linear), 1, width)

    def experts(
        self, count: int, roles: Mapping[str, int], columns: int, layer: int, *, whole: str, bias: bool = False
    ) -> Linear:
        """A stack of the projections of a role of each expert. whole: the role of one tensor of them all."""
        biases = self._expert_biases(count, roles, layer, whole) if bias else []
        return self._pack_experts(self._expert_rows(count, roles, columns, layer, whole), biases)

    def experts_behind_norm(
        self,
        norm: str,
        count: int,
        roles: Mapping[str, int],
        columns: int,
        layer: int,
        *,
        whole: str,
        bias: bool = False,
        gated: bool = False,
    ) -> NormedLinear:
        """As experts, of the output of a norm; for W8A8 its packing waits for activations. gated: the roles are gate
        and up, and the product's epilogue multiplies them; such have no biases."""
        rows, biases = self._own_experts(count, roles, columns, layer, whole, bias=bias)
        before = self.norm(norm, columns, layer)
        if self.smooths and before is not None:
            packed = PackedWhenCalled(lambda scale: self._pack_experts(rows, biases, scale, gated=gated))
            return NormedLinear(before, packed)
        return NormedLinear(before, self._pack_experts(rows, biases, gated=gated))

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

    def _own_parts(
        self,
        rows: Mapping[str, int],
        layer: int,
        suffix: str,
        columns: tuple[int, ...],
        fused: str,
        grouped: Mapping[str, Grouped] | None,
    ) -> list[Rows]:
        """The parts whose outputs stay in this process: all of them, where no others share the model."""
        return self._parts(rows, layer, suffix, columns, fused, grouped)

    def own(self, rows: Rows) -> Rows:
        """Likewise the rows of a projection of what processes have in parts, or of heads."""
        return rows

    def has_all(self, roles: Iterable[str], layer: int | None) -> bool:
        """Whether each process has all of these projections, and all that they read."""
        return True

    def whole(self, columns: Columns, held_by: int = 1) -> Columns:
        """What they have together, of what this one has; so many have it."""
        return columns

    def norm_of_all_heads(self, norm: NormOfAllHeads, kv_ranks: int) -> Callable[[Tensor, Tensor], None]:
        """The norm where this process has some of the heads; its weights are of all."""
        return norm

    def _outputs(
        self, rows: Mapping[str, int], columns: int | Heads, layer: int | None, *, bias: bool, fused: str = ""
    ) -> tuple[list[Rows], list[Rows]]:
        """The weights and the biases of projections of what these columns are; none without bias."""
        biases = self._parts(rows, layer, ".bias", (), fused) if bias else []
        if isinstance(columns, int):
            return self._parts(rows, layer, ".weight", (columns,), fused), biases
        stored = self._parts(rows, layer, ".weight", (columns.stored_width,), fused)
        return [filled_columns(part, columns) for part in stored], biases

    def _own_experts(
        self, count: int, roles: Mapping[str, int], columns: int, layer: int, whole: str, *, bias: bool
    ) -> tuple[list[list[Rows]], list[Tensor]]:
        """The rows and the biases of experts whose outputs stay in this process."""
        biases = self._expert_biases(count, roles, layer, whole) if bias else []
        return self._expert_rows(count, roles, columns, layer, whole), biases

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

    def _pack_experts(
        self,
        parts: list[list[Rows]],
        biases: Sequence[Tensor],
        column_scale: Tensor | None = None,
        *,
        gated: bool = False,
    ) -> Packed:
        each = [interleaved(*of_expert) if gated else padded(stacked(of_expert)) for of_expert in parts]
        width = each[0].shape[0] if gated else sum(part.shape[0] for part in parts[0])
        rows, mixed = Stacked(each), len(set(map(kind_of, each))) > 1  # one kernel call takes one kind
        pack = self.packer
        packed = pack.dense(rows, None) if self.keeps_bits and mixed else pack.pack(rows, None, column_scale)
        return replace(as_stack(packed, len(parts), width), bias=torch.cat(list(biases), dim=1) if biases else None)

    def _bias_of(self, parts: Sequence[Rows], gated: bool = False) -> Tensor | None:
        """None of no parts."""
        if not parts:
            return None
        vectors = [self._on_device(part) for part in parts]
        return ops.interleave_gate_up(*vectors) if gated else torch.cat(vectors)

    def _arranged(self, parts: list[Rows], roles: Iterable[str], heads: Mapping[str, Heads] | None) -> list[Rows]:
        """With the rows of heads as the kernels take them."""
        if heads is None or not parts:
            return parts

        def arranged(rows: Rows, of: Heads | None) -> Rows:
            if of is None:
                return rows
            if of.rotary_dim and self.family.adjacent_pairs:
                rows = turned(rows, of.count, of.rotary_dim)
            return filled(rows, of)

        return [arranged(part, heads.get(role)) for role, part in zip(roles, parts, strict=True)]

    def _on_device(self, vector: Rows) -> Tensor:
        return vector[0 : vector.shape[0]].to(self.device, self.dtype, copy=True)


class WeightPlan(WeightLoader):
    """A WeightLoader that allocates nothing: what it makes has shapes and dtypes only."""

    def __init__(self, checkpoint: Checkpoint, dtype: torch.dtype, quantization: str | None) -> None:
        super().__init__(checkpoint, dtype, quantization, torch.device("meta"))
        self.smooths = False
        self._planned = self.packer = PackingPlan(dtype, self.device, self.keeps_bits, self._int8_matmul)

    @property
    def count(self) -> int:
        """Of the weights that `advance` will be called with."""
        return self._planned.count
