"""Packs a checkpoint's tensors for the blocks of a decoder."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TypeVar, cast

import torch
from torch import Tensor

from pybatch import ops
from pybatch.model.layers import DenseLinear, Linear, Norm, NormedLinear, NormOfAllHeads, Packed, as_stack
from pybatch.model.packing import Packer, PackingPlan, kind_of
from pybatch.model.role_tensors import Checkpoint, Grouped, RoleTensors
from pybatch.model.rows import Heads, Held, Interleaved, Rows, Stacked, filled, interleaved, padded, stacked, turned
from pybatch.model.smoothquant import PackedWhenCalled

INT8_MATMULS = {"int8": ops.matmul_w8a8, "int8-weight-only": ops.matmul_w8a16}
QUANTIZATIONS = (*INT8_MATMULS, "gguf")
Columns = TypeVar("Columns", bound=int | Heads)


class WeightLoader(RoleTensors):
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
        super().__init__(checkpoint, dtype, device)
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

    def matrix(self, rows: Rows) -> Packed:
        """A projection of these rows."""
        return self.packer.pack(Stacked([rows]), None)

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

    def _own_experts(
        self, count: int, roles: Mapping[str, int], columns: int, layer: int, whole: str, *, bias: bool
    ) -> tuple[list[list[Rows]], list[Tensor]]:
        """The rows and the biases of experts whose outputs stay in this process."""
        biases = self._expert_biases(count, roles, layer, whole) if bias else []
        return self._expert_rows(count, roles, columns, layer, whole), biases

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
