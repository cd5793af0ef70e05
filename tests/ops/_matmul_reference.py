"""What the matmuls must give, in float64, and every one of them on fixed inputs, for processes with another ISA.

As a script: ``_matmul_reference.py FILE`` runs the cases and saves {"isa", "outputs"} there.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

import torch
from torch import Tensor

from pybatch import ops

FLOATS = (torch.float32, torch.float16, torch.bfloat16)


def exact_int8(x: Tensor, q: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    """W8A8 by its definition: fp32 quantisation of each row, an exact integer sum, scales and bias in float64."""
    x = x.float()
    row_scale = x.abs().amax(1) / 127
    xq = torch.where(row_scale[:, None] > 0, (x / row_scale[:, None]).round(), 0.0)
    total = (xq.double() @ q.double().t()) * (row_scale.double()[:, None] * scale.double())
    return total if bias is None else total + bias.double()


def float_sum(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    total = x.double() @ weight.double().t()
    return total if bias is None else total + bias.double()


def fixed_cases() -> Iterator[tuple[str, Tensor]]:
    """(name, output) of every kernel over types of weight and shapes with remainders of every kind."""
    for m, n, k in ((1, 64, 96), (7, 50, 37), (30, 130, 1100), (300, 33, 70)):
        generator = torch.Generator().manual_seed(m)
        x = torch.randn(m, k, generator=generator)
        weight = torch.randn(n, k, generator=generator)
        bias = torch.randn(n, generator=generator)
        for dtype in FLOATS:
            packed = ops.pack_dense(weight.to(dtype))
            yield f"dense-{dtype}-{m}", ops.matmul_dense(x.to(dtype), packed, bias, out=torch.empty(m, n))
        q, scale = ops.quantize_int8(weight)
        packed = ops.pack_int8(q)
        yield f"w8a16-{m}", ops.matmul_w8a16(x, packed, scale, bias, out=torch.empty(m, n))
        yield f"w8a8-{m}", ops.matmul_w8a8(x, packed, scale, bias, out=torch.empty(m, n))


if __name__ == "__main__":
    torch.save({"isa": ops.ISA, "outputs": dict(fixed_cases())}, sys.argv[1])
