"""SmoothQuant (Xiao et al. 2023): a few channels of a norm's output are an order of magnitude larger than the rest, and
would take the int8 range for themselves. Dividing those channels by a scale in the norm's weight, and multiplying the
columns of the projection behind it, leaves the product as it was and the range to all.

The scales come from the model's own activations (calibration.py). They are powers of two, so that no other rounding is
added, and so that small differences between processors do not show in them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Unpack

from torch import Tensor

from pybatch import ops
from pybatch.model.layers import Fused, Packed

STRENGTH = 0.5  # 0: nothing is moved into the weights, 1: all channels come out alike
RANGE = 2.0**-10  # channels are taken to be at least so large, relative to the mean


def channel_scale(x: Tensor) -> Tensor:
    """[K] float32 powers of two by which to divide the channels of x [T, K]."""
    largest = x.abs().amax(0).float()
    relative = (largest / largest.mean()).nan_to_num().clamp(min=RANGE)
    return (STRENGTH * relative.log2()).round().exp2()


class PackedWhenCalled:
    """A projection behind a norm whose weights are packed at the first call, by its input. `then` takes what that call
    has used, and gives what the decoder is to have."""

    def __init__(self, pack: Callable[[Tensor], Packed]) -> None:
        self._pack: Callable[[Tensor], Packed] | None = pack
        self.then: Callable[[Packed], Packed] = lambda packed: packed

    def __call__(self, x: Tensor, out: Tensor, **fused: Unpack[Fused]) -> Tensor:
        norm = fused.pop("norm", None)
        normed = x if norm is None else ops.rms_norm(x, norm, fused.pop("norm_eps"))
        assert self._pack is not None
        self.scale = channel_scale(normed)
        packed = self._pack(self.scale.cpu())
        self._pack = None  # which holds the checkpoint's tensors
        packed((normed / self.scale).to(x.dtype), out, **fused)
        self.linear = self.then(packed)
        return out
