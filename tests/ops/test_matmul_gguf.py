"""matmul_gguf multiplies by what a GGUF file holds, to the bit, and is as invariant as the other matmuls."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from gguf_blocks import dequantized, largest_blocks, random_blocks
from hypothesis import given, settings
from hypothesis import strategies as st
from ops.rows import FLOATS, apart, assert_rows_stand_alone, same_bits, threads
from torch import Tensor

from pybatch import ops
from pybatch.ops import Epilogue

ROUNDING = {torch.float32: 2.0**-23, torch.float16: 2.0**-10, torch.bfloat16: 2.0**-7}
floats = st.sampled_from(FLOATS)
kinds = st.sampled_from(list(ops.GGUF_BLOCKS))
each_kind = pytest.mark.parametrize("kind", ops.GGUF_BLOCKS)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def matmul(kind: str, n: int, k: int) -> Callable[[Tensor], Tensor]:
    packed, bias = ops.pack_gguf(torch.from_numpy(random_blocks(kind, n, k)), kind), normal(n)
    return lambda x: ops.matmul_gguf(x, packed, bias, out=torch.empty(len(x), n))


def quantized(x: Tensor) -> Tensor:
    """The activations that a row becomes, in float64: blocks of 32, quantised in fp32."""
    blocks = x.float().unflatten(1, (-1, 32))
    largest = blocks.abs().amax(2, keepdim=True)
    scale, q = largest / 127, torch.where(largest > 0, (blocks * (torch.tensor(127.0) / largest)).round(), 0.0)
    return (q.double() * scale.double()).flatten(1)


@settings(max_examples=150, deadline=None)
@given(
    kind=kinds, m=st.integers(1, 40), n=st.integers(1, 70), blocks=st.integers(1, 20), bias=st.booleans(),
    x_type=floats, bias_type=floats, out_type=floats,
)  # fmt: skip
def test_it_is_the_sum_of_quantised_activations(
    kind: str, m: int, n: int, blocks: int, bias: bool, x_type: torch.dtype, bias_type: torch.dtype,
    out_type: torch.dtype,
) -> None:  # fmt: skip
    k = blocks * 32 if ops.GGUF_BLOCKS[kind].weights == 32 else -(-blocks // 8) * 256
    data = random_blocks(kind, n, k, seed=m)
    x, b = normal(m, k, seed=n).to(x_type), normal(n).to(bias_type) if bias else None
    out = apart(torch.zeros(m, n, dtype=out_type))
    assert ops.matmul_gguf(apart(x), ops.pack_gguf(torch.from_numpy(data), kind), b, out=out) is out

    activations, weight = quantized(x), dequantized(data, kind).double()
    expected = activations @ weight.t() + (0 if b is None else b.double())
    # Where there is a min it and the codes are summed apart, and may be larger than what they come to.
    largest = weight.abs().unflatten(1, (-1, 16)).amax(2).repeat_interleave(16, 1)
    size = activations.abs() @ (4 * largest).t() + (0 if b is None else b.double().abs())
    error = (out.double() - expected).abs()
    subnormal = torch.finfo(out_type).tiny * torch.finfo(out_type).eps
    assert (error <= ROUNDING[out_type] * expected.abs() + (k / 16 + 8) * 2.0**-24 * size + subnormal).all()


@each_kind
def test_a_row_alone_has_the_bits_it_has_in_any_batch(kind: str) -> None:
    for n, k in ((192, 512), (40, 256)):
        run, x = matmul(kind, n, k), normal(530, k)
        with threads(1):
            alone = torch.cat([run(row[None]) for row in x])
        for count in (1, 2):
            with threads(count):
                for m in (*range(1, 36), 64, 100, 257, 530):
                    start = (530 - m) // 2  # so that a row is met at many places of many tiles
                    assert same_bits(run(x[start : start + m]), alone[start : start + m]), f"{m} rows, {count} threads"


@each_kind
def test_a_sum_that_is_parked_between_blocks_of_k_is_the_same(kind: str) -> None:
    run, x = matmul(kind, 20, 512 * 32 + 256), normal(37, 512 * 32 + 256)
    assert_rows_stand_alone(run, x)


@each_kind
def test_a_row_that_is_not_finite_stays_alone(kind: str) -> None:
    run, x = matmul(kind, 70, 256), normal(30, 256)
    clean = run(x)
    x[4, 7], x[11, 255], x[12, 0] = torch.nan, torch.inf, -torch.inf
    out, bad = run(x), torch.tensor([4, 11, 12])
    assert not out[bad].isfinite().any()
    good = torch.ones(30, dtype=torch.bool).index_fill(0, bad, False)
    assert same_bits(out[good], clean[good])


@each_kind
def test_rows_of_zeros_and_of_the_smallest_numbers_are_the_bias(kind: str) -> None:
    x = torch.zeros(2, 256)
    x[1] = 1e-43
    assert same_bits(matmul(kind, 20, 256)(x), normal(20).expand(2, 20).contiguous())


@each_kind
def test_nothing_in_nothing_out(kind: str) -> None:
    assert matmul(kind, 40, 256)(torch.empty(0, 256)).shape == (0, 40)


@each_kind
def test_largest_codes_do_not_saturate(kind: str) -> None:
    data = largest_blocks(kind, 16, 256)
    x = torch.full((2, 256), 127.0)
    x[1] = -127
    out = ops.matmul_gguf(x, ops.pack_gguf(torch.from_numpy(data), kind), out=torch.empty(2, 16))
    assert torch.equal(out.double(), x.double() @ dequantized(data, kind).double().t())


@settings(max_examples=60, deadline=None)
@given(kind=kinds, n=st.integers(1, 50), blocks=st.integers(1, 4), dtype=floats)
def test_embedding_is_what_gguf_dequantises(kind: str, n: int, blocks: int, dtype: torch.dtype) -> None:
    k = blocks * ops.GGUF_BLOCKS[kind].weights
    data = random_blocks(kind, n, k, seed=n)
    ids = torch.arange(2 * n) % n
    out = ops.embedding(ids, ops.pack_gguf(torch.from_numpy(data), kind), torch.empty(2 * n, k, dtype=dtype), n)
    assert torch.equal(out, dequantized(data, kind)[ids].to(dtype))


@pytest.mark.host
@each_kind
def test_packing_keeps_every_bit_and_pads_with_zeros(kind: str) -> None:
    data = torch.from_numpy(random_blocks(kind, 20, 512))
    block, packed = ops.GGUF_BLOCKS[kind], ops.pack_gguf(data, kind)
    assert packed.shape == (2, 512 // block.weights, 16 * block.bytes)
    assert packed.nbytes * 20 == data.nbytes * 32
    held = packed.view(torch.uint8).flatten().sort().values
    assert torch.equal(held[-data.numel() :], data.flatten().sort().values)


@pytest.mark.host
def test_wrong_arguments_are_named() -> None:
    x, out = torch.zeros(3, 256), torch.zeros(3, 20)
    packed = ops.pack_gguf(torch.from_numpy(random_blocks("Q4_K", 20, 256)), "Q4_K")
    bad: list[tuple[str, Callable[[], Tensor]]] = [
        ("x: ", lambda: ops.matmul_gguf(x.double(), packed, out=out)),
        ("weight: ", lambda: ops.matmul_gguf(torch.zeros(3, 512), packed, out=out)),
        ("weight: ", lambda: ops.matmul_gguf(torch.zeros(3, 128), packed, out=out)),
        ("weight: ", lambda: ops.matmul_gguf(x, packed.to(torch.int8), out=out)),
        ("weight: ", lambda: ops.matmul_gguf(x, packed[..., :-1].contiguous(), out=out)),
        ("weight: ", lambda: ops.matmul_gguf(x, packed, out=torch.zeros(3, 40))),
        ("bias: ", lambda: ops.matmul_gguf(x, packed, torch.zeros(19), out=out)),
        ("out: ", lambda: ops.matmul_gguf(x, packed, out=torch.zeros(2, 20))),
    ]
    for name, call in bad:
        with pytest.raises(RuntimeError, match=f"^{name}expected"):
            call()


@each_kind
def test_fused_steps_have_the_bits_of_separate_ops(kind: str) -> None:
    k, width = 512, 40
    parts = torch.from_numpy(random_blocks(kind, 2 * width, k)).unflatten(0, (2, width))
    x, norm, residual = normal(21, k), normal(k, seed=1), normal(21, width, seed=2)
    stacked, interleaved = (ops.pack_gguf(rows, kind) for rows in (parts.flatten(0, 1), ops.interleave_gate_up(*parts)))
    product = ops.matmul_gguf(ops.rms_norm(x, norm, 1e-5), stacked, out=torch.empty(21, 2 * width))
    fused = {"norm": norm, "norm_eps": 1e-5}
    gated = ops.matmul_gguf(x, interleaved, out=torch.empty(21, width), epilogue=Epilogue.SILU_MUL, **fused)
    assert same_bits(gated, ops.silu_mul(product))
    added = ops.matmul_gguf(x, ops.pack_gguf(parts[0], kind), out=residual.clone(), epilogue=Epilogue.ADD, **fused)
    assert same_bits(added, residual + product[:, :width])
