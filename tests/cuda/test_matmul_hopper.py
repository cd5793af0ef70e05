"""W8A8 of many rows, by wgmma on Hopper: the bits of few rows, which go by mma.sync on every chip."""

from __future__ import annotations

import pytest
import torch

from pybatch import ops
from pybatch.ops import Epilogue

pytestmark = pytest.mark.skipif(not ops.CUDA, reason="needs a GPU, and pybatch built with CUDA")


@pytest.mark.parametrize("epilogue", [Epilogue.STORE, Epilogue.ADD, Epilogue.SILU_MUL])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("m", "width", "k"), [(300, 200, 300), (4500, 1200, 1000), (1000, 4000, 4097)])
def test_many_rows_have_the_bits_of_few(epilogue: Epilogue, dtype: torch.dtype, m: int, width: int, k: int) -> None:
    torch.manual_seed(0)
    n = width if epilogue < Epilogue.SILU_MUL else -(-width // 16) * 32
    q, scale = ops.quantize_int8(torch.randn(n, k, device="cuda"))
    packed, bias, norm = ops.pack_int8(q), torch.randn(n, device="cuda"), torch.randn(k, device="cuda").to(dtype)
    x, residual = torch.randn(m, k, device="cuda").to(dtype), torch.randn(m, width, device="cuda").to(dtype)

    def run(rows: slice) -> torch.Tensor:
        return ops.matmul_w8a8(
            x[rows], packed, scale, bias, out=residual[rows].clone(), norm=norm, norm_eps=1e-5, epilogue=epilogue
        )

    few = [run(slice(first, first + 100)) for first in range(0, m, 100)]
    assert torch.equal(run(slice(0, m)), torch.cat(few))
