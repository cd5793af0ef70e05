"""The bits of a row are the same in few rows and in many, which on Hopper go by mma.sync and by wgmma."""

from __future__ import annotations

import pytest
import torch

from pybatch import ops
from pybatch.ops import Epilogue

pytestmark = pytest.mark.skipif(not ops.CUDA, reason="needs a GPU, and pybatch built with CUDA")

FEW = 30  # rows, which mma.sync multiplies


@pytest.mark.parametrize("kernel", ["dense", "w8a16", "float8", "float8-blocks", "w8a8"])
@pytest.mark.parametrize("epilogue", [Epilogue.STORE, Epilogue.ADD, Epilogue.SILU_MUL])
@pytest.mark.parametrize("out_type", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("m", "width", "k"), [(300, 200, 296), (4500, 1200, 1000), (1000, 4000, 4104), (60, 64, 64)])
def test_many_rows_have_the_bits_of_few(
    kernel: str, epilogue: Epilogue, out_type: torch.dtype, dtype: torch.dtype, m: int, width: int, k: int
) -> None:
    torch.manual_seed(0)
    n = width if epilogue < Epilogue.SILU_MUL else -(-width // 16) * 32
    weight, bias, norm = torch.randn(n, k, device="cuda"), torch.randn(n, device="cuda"), torch.randn(k, device="cuda")
    x, residual = torch.randn(m, k, device="cuda").to(dtype), torch.randn(m, width, device="cuda").to(out_type)
    if kernel == "dense":
        weights: tuple[torch.Tensor, ...] = (ops.pack_dense(weight.to(dtype)),)
    elif kernel == "float8":
        weights = ops.pack_float8((weight * 100).to(torch.float8_e4m3fn)), torch.full((n,), 0.01, device="cuda")
    elif kernel == "float8-blocks":
        codes, scales = (weight * 100).to(torch.float8_e4m3fn), torch.rand(n, -(-k // 128), device="cuda")
        weights = ops.pack_float8(codes, scales), torch.full((n,), 0.01, device="cuda")
    else:
        q, scale = ops.quantize_int8(weight)
        weights = ops.pack_int8(q), scale

    def run(rows: slice) -> torch.Tensor:
        return getattr(ops, f"matmul_{'w8a16' if kernel.startswith('float8') else kernel}")(
            x[rows], *weights, bias, out=residual[rows].clone(), norm=norm.to(dtype), norm_eps=1e-5, epilogue=epilogue
        )

    few = [run(slice(first, first + FEW)) for first in range(0, m, FEW)]
    assert torch.equal(run(slice(0, m)), torch.cat(few))
