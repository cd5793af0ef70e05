from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ops.matmul_sums import exact_int8, float_sum
from ops.rows import FLOATS
from torch import Tensor

from pybatch import ops
from pybatch.ops import Epilogue

TOLERANCE = {torch.float32: 0.0, torch.float16: 2.0**-10, torch.bfloat16: 2.0**-7}  # of one rounding of an output
DENSE = ["dense-float32", "dense-float16", "dense-bfloat16", "dense-bfloat16-bfloat16"]
BYTES = ["w8a16", "float8", "float8-blocks", "w8a8"]
KERNELS = [*DENSE, *BYTES]
floats = st.sampled_from(FLOATS)


@pytest.fixture(autouse=True)
def keep_thread_count() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def random(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def rows_apart(x: Tensor, gap: int) -> Tensor:
    """x as a slice of columns of a wider matrix, with NaN around it."""
    wide = x.new_full((x.shape[0], x.shape[1] + 2 * gap), torch.nan)
    wide[:, gap : gap + x.shape[1]] = x
    return wide[:, gap : gap + x.shape[1]]


def matmul(kernel: str, n: int, k: int) -> Callable[[Tensor], Tensor]:
    """One kernel with weights [n, k], as x -> float32 output. dense-W-X: weights and activations in these types."""
    weight, bias = random(n, k, seed=1), random(n, seed=2)
    if kernel.startswith("dense"):
        weights, *activations = (getattr(torch, name) for name in kernel.split("-")[1:])
        x_type, dense = activations[0] if activations else torch.float32, ops.pack_dense(weight.to(weights))
        return lambda x: ops.matmul_dense(x.to(x_type), dense, bias, out=torch.empty(x.shape[0], n))
    packed, scale = packed_bytes(kernel, weight)
    return lambda x: eight_bits(kernel)(x, packed, scale, bias, out=torch.empty(x.shape[0], n))


def eight_bits(kernel: str) -> Callable[..., Tensor]:
    return ops.matmul_w8a8 if kernel == "w8a8" else ops.matmul_w8a16


def packed_bytes(kernel: str, weight: Tensor) -> tuple[Tensor, Tensor]:
    if kernel.startswith("w8"):
        q, scale = ops.quantize_int8(weight)
        return ops.pack_int8(q), scale
    if kernel == "float8":
        scale = weight.abs().amax(1) / 448
        return ops.pack_float8((weight / scale[:, None]).to(torch.float8_e4m3fn)), scale
    n, k = weight.shape
    largest = torch.nn.functional.pad(weight, (0, -k % 128)).view(n, -1, 128).abs().amax(2)
    codes = (weight / in_blocks(largest / 448, k)).to(torch.float8_e4m3fn)
    return ops.pack_float8(codes, largest / 224), torch.full((n,), 0.5)


def in_blocks(scales: Tensor, k: int) -> Tensor:
    """[N, blocks] -> [N, K]."""
    return scales.repeat_interleave(128, dim=1)[:, :k]


def float8_codes(n: int, k: int) -> Tensor:
    """All of them, but for the two that are NaN."""
    bits = torch.randint(-127, 127, (n, k), dtype=torch.int8, generator=torch.Generator().manual_seed(n))
    return torch.where(bits == -1, -128, bits).to(torch.int8).view(torch.float8_e4m3fn)


def assert_close(out: Tensor, expected: Tensor, magnitude: Tensor, k: int) -> None:
    """Within the rounding of out's dtype plus that of a sum of k fp32 products whose sizes add up to magnitude."""
    error = (out.double() - expected).abs()
    limit = TOLERANCE[out.dtype] * expected.abs() + (k + 4) * 2.0**-24 * magnitude + 2.0**-24
    assert (error <= limit).all(), f"off by {(error - limit).max():.3g} more than rounding explains"


@settings(max_examples=150, deadline=None)
@given(
    m=st.integers(1, 40), n=st.integers(1, 140), k=st.integers(1, 1200), gap=st.integers(0, 3), bias=st.booleans(),
    x_type=floats, weight_type=floats, bias_type=floats, out_type=floats,
)  # fmt: skip
def test_dense_is_the_sum(
    m: int, n: int, k: int, gap: int, bias: bool, x_type: torch.dtype, weight_type: torch.dtype,
    bias_type: torch.dtype, out_type: torch.dtype,
) -> None:  # fmt: skip
    x, weight = random(m, k, dtype=x_type, seed=m), random(n, k, dtype=weight_type, seed=n)
    b = random(n, dtype=bias_type, seed=k) if bias else None
    out = rows_apart(torch.zeros(m, n, dtype=out_type), gap)
    ops.matmul_dense(rows_apart(x, gap), ops.pack_dense(weight), b, out=out)
    magnitude = float_sum(x.abs(), weight.abs(), None if b is None else b.abs())
    assert_close(out, float_sum(x, weight, b), magnitude, k)


@settings(max_examples=150, deadline=None)
@given(
    kernel=st.sampled_from(BYTES), m=st.integers(1, 40), n=st.integers(1, 140),
    k=st.integers(1, 2400), gap=st.integers(0, 3), bias=st.booleans(), x_type=floats, bias_type=floats, out_type=floats,
)  # fmt: skip
def test_eight_bits_are_the_sum(
    kernel: str, m: int, n: int, k: int, gap: int, bias: bool, x_type: torch.dtype, bias_type: torch.dtype,
    out_type: torch.dtype,
) -> None:  # fmt: skip
    x = random(m, k, dtype=x_type, seed=m)
    q = torch.randint(-128, 128, (n, k), dtype=torch.int8, generator=torch.Generator().manual_seed(n))
    scale = torch.rand(n, generator=torch.Generator().manual_seed(k)) / 100
    b = random(n, dtype=bias_type, seed=k) if bias else None
    out = rows_apart(torch.zeros(m, n, dtype=out_type), gap)
    codes = q if kernel.startswith("w8") else float8_codes(n, k)
    weight = codes.double() * scale.double()[:, None]
    if kernel == "float8-blocks":
        scales = torch.rand(n, -(-k // 128), generator=torch.Generator().manual_seed(m))
        packed, weight = ops.pack_float8(codes, scales), weight * in_blocks(scales, k)
    else:
        packed = ops.pack_int8(codes) if kernel.startswith("w8") else ops.pack_float8(codes)
    eight_bits(kernel)(rows_apart(x, gap), packed, scale, b, out=out)
    if kernel == "w8a8":  # only the conversion of an exact sum, its scaling and the bias round
        expected = exact_int8(x, q, scale, b)
        assert_close(out, expected, expected.abs() + (0 if b is None else b.double().abs()), 0)
    else:
        magnitude = float_sum(x.abs(), weight.abs(), None if b is None else b.abs())
        assert_close(out, float_sum(x, weight, b), magnitude, k)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize(("n", "k"), [(192, 576), (100, 37), (40, 2100)])
def test_a_row_alone_has_the_bits_it_has_in_any_batch(kernel: str, n: int, k: int) -> None:
    run, x = matmul(kernel, n, k), random(530, k)
    torch.set_num_threads(1)
    alone = torch.cat([run(row[None]) for row in x])
    for threads in (1, 2):
        torch.set_num_threads(threads)
        for m in (*range(1, 32), 64, 100, 257, 530):
            start = (530 - m) // 2  # so that a row is met at many places of many tiles
            assert torch.equal(run(x[start : start + m]), alone[start : start + m]), f"{m} rows, {threads} threads"


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_row_that_is_not_finite_stays_alone(kernel: str) -> None:
    run, x = matmul(kernel, 70, 300), random(30, 300)
    clean = run(x)
    x[4, 7], x[11, 299], x[12, 0] = torch.nan, torch.inf, -torch.inf
    out, bad = run(x), torch.tensor([4, 11, 12])
    assert not out[bad].isfinite().any()
    good = torch.ones(30, dtype=torch.bool).index_fill(0, bad, False)
    assert torch.equal(out[good], clean[good])


def test_w8a8_of_a_zero_row_is_the_bias() -> None:
    q, scale = ops.quantize_int8(random(20, 10))
    bias = random(20, seed=1)
    out = ops.matmul_w8a8(torch.zeros(2, 10), ops.pack_int8(q), scale, bias, out=torch.empty(2, 20))
    assert torch.equal(out, bias.expand(2, 20))


def test_w8a8_of_tiny_rows() -> None:
    """A row whose scale would be no normal number counts as zeros; just above that it is exact."""
    q, scale = ops.quantize_int8(random(20, 10))[0], torch.full((20,), 1e30)
    tiny = torch.tensor([2.0**-149, 2.0**-140, -(2.0**-127), 126.9 * 2.0**-126, 127.5 * 2.0**-126, 2.0**-118])
    x = tiny[:, None] * torch.linspace(-1, 0.8, 10)
    out = ops.matmul_w8a8(x, ops.pack_int8(q), scale, out=torch.empty(6, 20))
    assert (out[:4] == 0).all()
    assert_close(out, exact_int8(x, q, scale, None), out.double().abs(), 0)
    assert (out[4:] != 0).any(1).all()


@settings(max_examples=100, deadline=None)
@given(
    m=st.integers(1, 20), n=st.integers(1, 40), k=st.integers(1, 1000), level=st.sampled_from([1, 31, 32, 33, 64, 127]),
    same_sign=st.booleans(), weight=st.sampled_from([-128, -127, 127, None]), peaks=st.integers(0, 5),
    seed=st.integers(0, 2**31),
)  # fmt: skip
def test_w8a8_is_exact_whatever_size_activations_have(
    m: int, n: int, k: int, level: int, same_sign: bool, weight: int | None, peaks: int, seed: int
) -> None:
    """Rows whose products fit narrow sums, just fit or do not, in one batch; of weights where the sums are largest."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.full((m, k), float(level))
    x[m // 2 :] = torch.randint(-level, level + 1, (m - m // 2, k), generator=generator).float()
    if not same_sign:
        x *= torch.randint(0, 2, (m, k), generator=generator) * 2 - 1
    x[torch.randint(m, (peaks,), generator=generator), torch.randint(k, (peaks,), generator=generator)] = 127.0
    x[:, 0] = 127.0  # so that the scale is 1
    q = torch.randint(-127, 128, (n, k), generator=generator) if weight is None else torch.full((n, k), weight)
    out = ops.matmul_w8a8(x, ops.pack_int8(q.to(torch.int8)), torch.ones(n), out=torch.empty(m, n))
    assert torch.equal(out.double(), x.double() @ q.double().t())


@pytest.mark.parametrize("rows", [3, 20])
def test_w8a8_sums_exactly_at_the_extremes(rows: int) -> None:
    k = 20_000  # largest products, and many of them: nothing may saturate on the way
    sign = torch.ones(rows, 1)
    sign[1::2] = -1
    x = sign.expand(rows, k).contiguous()
    q = torch.full((17, k), 127, dtype=torch.int8)
    q[1::2] = -128
    scale = torch.ones(17)
    out = ops.matmul_w8a8(x, ops.pack_int8(q), scale, out=torch.empty(rows, 17))
    sums = (127 * sign).long() * q.long().sum(1)
    assert torch.equal(out, sums.float() * (torch.tensor(1.0) / 127))


@pytest.mark.parametrize("rows", [1, 20])
def test_w8a8_sums_of_the_most_columns_fit(rows: int) -> None:
    """Where int32 has no room for one percent more."""
    k = 131072
    x, q = torch.ones(rows, k), torch.full((3, k), -128, dtype=torch.int8)
    q[1], q[2] = 127, -127
    out = ops.matmul_w8a8(x, ops.pack_int8(q), torch.ones(3), out=torch.empty(rows, 3))
    sums = 127 * q.long().sum(1)
    assert torch.equal(out, (sums.float() * (torch.tensor(1.0) / 127)).expand(rows, 3))


@pytest.mark.parametrize("listed", [0, 1, 38, 39, 40, 41, 128])
def test_w8a8_is_exact_however_many_activations_stand_out(listed: int) -> None:
    """What AVX2 cannot sum in 16 bits it lists, 40 fours in 512 columns at most. In one batch: rows with so many in the
    first 512, in the second, in both, or none."""
    k = 1100
    x = torch.arange(k).remainder(31).sub(15).repeat(9, 1).float()
    for row, steps in enumerate(([0], [1], [0, 1], [], [2])):
        for step in steps:
            places = 512 * step + 4 * torch.arange(min(listed, (min(k, 512 * step + 512) - 512 * step) // 4))
            x[row, places], x[row, places + 1] = 127.0, 100.0
    x[:, 3] = 127.0  # so that the scale is 1
    q = torch.randint(-128, 128, (33, k), generator=torch.Generator().manual_seed(listed))
    packed = ops.pack_int8(q.to(torch.int8))
    for rows in (x, x[:1], x[3:5]):
        out = ops.matmul_w8a8(rows, packed, torch.ones(33), out=torch.empty(len(rows), 33))
        assert torch.equal(out.double(), rows.double() @ q.double().t())


@pytest.mark.parametrize("kernel", KERNELS)
def test_nothing_in_nothing_out(kernel: str) -> None:
    assert matmul(kernel, 40, 30)(torch.empty(0, 30)).shape == (0, 40)


def test_an_empty_sum_is_the_bias() -> None:
    bias = random(20)
    out = ops.matmul_dense(torch.empty(2, 0), torch.empty(2, 0, 16), bias, out=torch.empty(2, 20))
    assert torch.equal(out, bias.expand(2, 20))


@pytest.mark.host
def test_quantize_int8_is_nearest_and_symmetric() -> None:
    weight = random(9, 100)
    weight[3] = 0
    q, scale = ops.quantize_int8(weight)
    assert scale.dtype == torch.float32
    assert torch.equal(scale, weight.abs().amax(1) / 127)
    assert (q[3] == 0).all()
    assert q.abs().amax() == 127
    assert ((q * scale[:, None] - weight).abs() <= scale[:, None] * 0.5001).all()


@pytest.mark.host
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_quantize_int8_of_the_smallest_numbers(dtype: torch.dtype) -> None:
    """As of activations: with a scale below the smallest normal number it and all codes are 0."""
    tiny = torch.tensor([2.0**-133, 2.0**-127, 126 * 2.0**-126, 127 * 2.0**-126])
    weight = (tiny[:, None] * torch.tensor([1.0, 0.5, 0.0, -0.25])).to(dtype)
    q, scale = ops.quantize_int8(weight)
    assert scale[:3].eq(0).all()
    assert q[:3].eq(0).all()
    assert scale[3] == 2.0**-126
    assert q[3].tolist() == [127, 64, 0, -32]


@pytest.mark.host
@pytest.mark.parametrize("dtype", [*FLOATS, torch.int8, torch.float8_e4m3fn])
def test_weights_are_packed_wherever_they_lie(dtype: torch.dtype) -> None:
    """Where words of four bytes begin in a storage is not where a slice of it does."""
    content = torch.randint(-100, 100, (1 + 32 * 64,), generator=torch.Generator().manual_seed(0)).to(dtype)
    pack = {torch.int8: ops.pack_int8, torch.float8_e4m3fn: ops.pack_float8}.get(dtype, ops.pack_dense)
    weight = content[1:].view(32, 64)
    assert torch.equal(pack(weight).view(torch.uint8), pack(weight.clone()).view(torch.uint8))


@pytest.mark.host
@given(n=st.integers(1, 70), k=st.integers(1, 70), dtype=floats)
@settings(deadline=None)
def test_pack_dense_layout(n: int, k: int, dtype: torch.dtype) -> None:
    weight = random(n, k, dtype=dtype)
    packed = ops.pack_dense(weight)
    assert packed.shape == ops.packed_dense_shape(n, k, dtype)
    assert packed.shape == ((-(-n // 16), k, 16) if dtype == torch.float32 else (-(-n // 16), -(-k // 2), 16, 2))
    flat = packed.transpose(1, 2).flatten(2).flatten(0, 1)
    assert torch.equal(flat[:n, :k], weight)
    assert (flat[n:] == 0).all()
    assert (flat[:, k:] == 0).all()


@pytest.mark.host
@given(n=st.integers(1, 70), k=st.integers(1, 70))
@settings(deadline=None)
def test_pack_int8_layout(n: int, k: int) -> None:
    q = torch.randint(-127, 128, (n, k), dtype=torch.int8, generator=torch.Generator().manual_seed(n * k))
    packed = ops.pack_int8(q)
    assert packed.shape == (-(-n // 16), -(-k // 4) + 1, 16, 4)
    flat = packed[:, :-1].transpose(1, 2).reshape(packed.shape[0] * 16, -1)
    assert torch.equal(flat[:n, :k], q)
    assert (flat[n:] == 0).all()
    assert (flat[:, k:] == 0).all()
    sums = packed[:, -1].contiguous().view(torch.int32).flatten()
    assert torch.equal(sums, flat.sum(1, dtype=torch.int32))


@pytest.mark.host
def test_pack_float8_layout() -> None:
    codes = float8_codes(21, 37)
    packed = ops.pack_float8(codes)
    assert packed.shape == (2, 11, 16, 4)
    flat = packed.view(torch.int8)[:, :-1].transpose(1, 2).reshape(32, 40)
    assert torch.equal(flat[:21, :37], codes.view(torch.int8))
    assert (flat[21:] == 0).all()
    assert (packed.view(torch.int8)[:, -1] == 0).all()


@pytest.mark.host
def test_pack_float8_in_blocks_layout() -> None:
    codes, scales = float8_codes(21, 300), random(21, 3)
    packed = ops.pack_float8(codes, scales)
    assert packed.shape == ops.packed_float8_blocks_shape(21, 300) == (2, 3, 33, 16, 4)
    flat = packed.view(torch.int8)[:, :, :-1].permute(0, 3, 1, 2, 4).reshape(32, 384)
    assert torch.equal(flat[:21, :300], codes.view(torch.int8))
    assert (flat[21:] == 0).all()
    assert (flat[:, 300:] == 0).all()
    found = packed.view(torch.float32)[:, :, -1, :, 0].transpose(1, 2).reshape(32, 3)
    assert torch.equal(found[:21], scales)
    assert (found[21:] == 0).all()


def test_float8_weights_are_widened_exactly() -> None:
    """Each of them, subnormal ones too, in every place of a group and in few rows and many."""
    codes = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn)
    codes = torch.where(codes.float().isnan(), torch.tensor(0.0), codes.float()).to(torch.float8_e4m3fn)
    weight = torch.stack([codes.view(torch.uint8).roll(i) for i in range(20)]).view(torch.float8_e4m3fn)
    for dtype in FLOATS:
        out = ops.matmul_w8a16(
            torch.eye(256, dtype=dtype), ops.pack_float8(weight), torch.ones(20), out=torch.empty(256, 20)
        )
        assert torch.equal(out, weight.float().t())
        few = ops.matmul_w8a16(
            torch.eye(256, dtype=dtype)[:5], ops.pack_float8(weight), torch.ones(20), out=torch.empty(5, 20)
        )
        assert torch.equal(few, weight[:, :5].float().t())


@pytest.mark.host
def test_wrong_arguments_are_named() -> None:
    x, out, scale = torch.zeros(3, 8), torch.zeros(3, 20), torch.zeros(20)
    dense, packed = ops.pack_dense(torch.zeros(20, 8)), ops.pack_int8(torch.zeros(20, 8, dtype=torch.int8))
    blocks = ops.pack_float8(float8_codes(20, 8), torch.ones(20, 1))
    bad: list[tuple[str, Callable[[], Tensor]]] = [
        ("x: ", lambda: ops.matmul_dense(torch.zeros(3, 8, dtype=torch.float64), dense, out=out)),
        ("x: ", lambda: ops.matmul_dense(torch.zeros(8), dense, out=out)),
        ("x: ", lambda: ops.matmul_dense(torch.zeros(8, 3).t(), dense, out=out)),
        ("weight: ", lambda: ops.matmul_dense(torch.zeros(3, 9), dense, out=out)),
        ("weight: ", lambda: ops.matmul_dense(x, torch.zeros(20, 8), out=out)),
        ("weight: ", lambda: ops.matmul_dense(x, packed, out=out)),
        ("bias: ", lambda: ops.matmul_dense(x, dense, torch.zeros(19), out=out)),
        ("out: ", lambda: ops.matmul_dense(x, dense, out=torch.zeros(2, 20))),
        ("out: ", lambda: ops.matmul_dense(x, dense, out=torch.zeros(3, 20, dtype=torch.int32))),
        ("weight: ", lambda: ops.matmul_w8a8(x, dense, scale, out=out)),
        ("weight: ", lambda: ops.matmul_w8a16(torch.zeros(3, 12), packed, scale, out=out)),
        ("x: ", lambda: ops.matmul_w8a8(torch.zeros(3, 131073), packed, scale, out=out)),
        ("scale: ", lambda: ops.matmul_w8a16(x, packed, torch.zeros(21), out=out)),
        ("weight: ", lambda: ops.matmul_w8a8(x, packed.view(torch.float8_e4m3fn), scale, out=out)),
        ("weight: ", lambda: ops.matmul_w8a16(torch.zeros(3, 129), blocks, scale, out=out)),
        ("weight: ", lambda: ops.matmul_w8a8(x, blocks, scale, out=out)),
        ("scale: ", lambda: ops.matmul_w8a8(x, packed, scale.double(), out=out)),
        ("bias: ", lambda: ops.matmul_w8a8(x, packed, scale, torch.zeros(20, dtype=torch.int32), out=out)),
    ]
    for name, call in bad:
        with pytest.raises(RuntimeError, match=f"^{name}expected"):
            call()


@pytest.mark.host
@pytest.mark.parametrize("kernel", ["dense", "w8a16", "w8a8"])
def test_opcheck(kernel: str) -> None:
    x, out = random(3, 8), torch.zeros(3, 20)
    if kernel == "dense":
        args: tuple[Tensor | float | None, ...] = (x, ops.pack_dense(random(20, 8)), None, random(8), 1e-5, 1, out)
    else:
        q, scale = ops.quantize_int8(random(20, 8))
        args = (x, ops.pack_int8(q), scale, random(20), None, 0.0, 0, out)
    torch.library.opcheck(getattr(torch.ops.pybatch, f"matmul_{kernel}").default, args)


@settings(max_examples=60, deadline=None)
@given(
    kernel=st.sampled_from(["dense", *BYTES]), m=st.integers(1, 40), width=st.integers(1, 100),
    k=st.integers(1, 700), bias=st.booleans(), dtype=floats,
)  # fmt: skip
def test_fused_steps_have_the_bits_of_separate_ops(
    kernel: str, m: int, width: int, k: int, bias: bool, dtype: torch.dtype
) -> None:
    x, norm, residual = random(m, k, dtype=dtype), random(k, dtype=dtype, seed=1), random(m, width, dtype=dtype, seed=2)
    parts = random(2, width, k, seed=3) * k**-0.5
    biases = random(2, width, dtype=dtype, seed=4) if bias else None

    def linear(weight: Tensor, b: Tensor | None) -> Callable[..., Tensor]:
        if kernel == "dense":
            return lambda x, **fused: ops.matmul_dense(x, ops.pack_dense(weight), b, **fused)
        packed, scale = packed_bytes(kernel, weight)
        return lambda x, **fused: eight_bits(kernel)(x, packed, scale, b, **fused)

    normed = ops.rms_norm(x, norm, 1e-5)
    gate_up = linear(parts.flatten(0, 1), None if biases is None else biases.flatten())
    interleaved = linear(ops.interleave_gate_up(*parts), None if biases is None else ops.interleave_gate_up(*biases))
    product = gate_up(normed, out=x.new_empty(m, 2 * width))
    for activation, epilogue in ((ops.silu_mul, Epilogue.SILU_MUL), (ops.gelu_tanh_mul, Epilogue.GELU_TANH_MUL)):
        fused = interleaved(x, norm=norm, norm_eps=1e-5, epilogue=epilogue, out=x.new_empty(m, width))
        assert torch.equal(fused, activation(product))
    up = linear(parts[1], None if biases is None else biases[1])
    summed = up(x, norm=norm, norm_eps=1e-5, epilogue=Epilogue.ADD, out=residual.clone())
    assert torch.equal(summed, residual + product[:, width:])
