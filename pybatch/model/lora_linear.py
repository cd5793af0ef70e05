"""A projection with the low-rank changes of the adapters that a step's rows have."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Unpack

from torch import Tensor

from pybatch import ops
from pybatch.model.layers import ACTIVATIONS, Fused, Packed, SideBySide
from pybatch.ops import Lora


@dataclass(slots=True)
class StepAdapters:
    """Of the step that a decoder runs, the adapter of each of the rows that a projection reads, [T] int32 as
    ops.add_lora takes them; None: none of them has one."""

    slots: Tensor | None = None


@dataclass(frozen=True, slots=True)
class LoraLinear:
    """Rows without an adapter have the bits that `linear` gives them."""

    linear: Packed | SideBySide
    lora: Lora
    step: StepAdapters

    def __call__(self, x: Tensor, out: Tensor, **fused: Unpack[Fused]) -> Tensor:
        slots = self.step.slots
        if slots is None:
            return self.linear(x, out, **fused)
        norm, epsilon = fused.pop("norm", None), fused.pop("norm_eps", 0.0)
        if norm is not None:  # which the adapter is behind too
            x = ops.rms_norm(x, norm, epsilon)
        epilogue = fused.get("epilogue", ops.STORE)
        activation = ACTIVATIONS.get(epilogue)
        if activation is None:
            self.linear(x, out, **fused)
            return ops.add_lora(x, slots, self.lora, out)
        if isinstance(self.linear, SideBySide):
            product = x.new_empty(len(x), sum(self.linear.widths))
            self.linear(x, product)
            return activation(ops.add_lora(x, slots, self.lora, product), out)
        product = out.new_empty(len(x), len(self.lora.panels) * ops.PANEL)
        self.linear(x, product)
        return ops.add_lora(x, slots, self.lora, product, out, epilogue=epilogue)


def without_adapters(linear: object) -> object:
    """The projection itself."""
    return linear.linear if isinstance(linear, LoraLinear) else linear
