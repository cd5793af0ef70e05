"""What the matmuls must give, in float64."""

from __future__ import annotations

import torch
from torch import Tensor


def exact_int8(x: Tensor, q: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    """W8A8 by its definition: fp32 quantisation of each row, an exact integer sum, scales and bias in float64."""
    x = x.float()
    largest = x.abs().amax(1)
    row_scale = torch.where(largest / 127 >= torch.finfo(torch.float32).tiny, largest / 127, 0.0)
    xq = torch.where(row_scale[:, None] > 0, (x * (torch.tensor(127.0) / largest)[:, None]).round(), 0.0)
    total = (xq.double() @ q.double().t()) * (row_scale.double()[:, None] * scale.double())
    return total if bias is None else total + bias.double()


def float_sum(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    total = x.double() @ weight.double().t()
    return total if bias is None else total + bias.double()
