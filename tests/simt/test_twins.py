"""The twins of the instructions against the PTX ISA's tables, worked out here a second time, and against torch."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable
from fractions import Fraction

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from simt import compile
from simt.device import buffers

U32 = NDArray[np.uint32]
Run = Callable[..., U32]
LANES = range(32)


@pytest.fixture(scope="module")
def run() -> Run:
    """run(kernel, in, shape of out): registers in, registers out."""
    library = ctypes.CDLL(str(compile.library([compile.HERE / "kernels" / "twins.cu"])))

    def call(kernel: str, registers: U32, shape: tuple[int, ...]) -> U32:
        source = torch.from_numpy(np.ascontiguousarray(registers).view(np.int32))
        out = torch.full(shape, -1, dtype=torch.int32)
        with buffers() as b:
            pointers = ctypes.c_void_p(b.read(source, "in")), ctypes.c_void_p(b.write(out, "out"))
            library.run(kernel.encode(), *pointers, shape[0])
        return out.numpy().view(np.uint32)

    return call


# ---- mma: (row, column) of element i of a lane, as the ISA gives them ----


def a_16(lane: int, i: int) -> tuple[int, int]:
    return lane // 4 + (0 if i in (0, 1, 4, 5) else 8), lane % 4 * 2 + i % 2 + (8 if i >= 4 else 0)


def b_16(lane: int, i: int) -> tuple[int, int]:
    return lane % 4 * 2 + i % 2 + (8 if i >= 2 else 0), lane // 4


def a_8(lane: int, i: int) -> tuple[int, int]:
    return lane // 4 + (0 if i % 8 < 4 else 8), lane % 4 * 4 + i % 4 + (16 if i >= 8 else 0)


def b_8(lane: int, i: int) -> tuple[int, int]:
    return lane % 4 * 4 + i % 4 + (16 if i >= 4 else 0), lane // 4


def c(lane: int, i: int) -> tuple[int, int]:
    return lane // 4 + (8 if i >= 2 else 0), lane % 4 * 2 + i % 2


Place = Callable[[int, int], tuple[int, int]]


def fragments(matrix: NDArray[np.generic], place: Place) -> U32:
    """[32, registers]: each lane's elements of the matrix, packed from the low end."""
    count = matrix.size // 32
    elements = np.array([[matrix[place(lane, i)] for i in range(count)] for lane in LANES])
    return elements.view(np.uint32)


def unpack(registers: U32, dtype: type, shape: tuple[int, int]) -> NDArray[np.generic]:
    out = np.zeros(shape, dtype)
    for lane in LANES:
        for i, value in enumerate(registers[lane].view(dtype)):
            out[c(lane, i)] = value
    return out


def bits_16(x: NDArray[np.float64], dtype: torch.dtype) -> tuple[NDArray[np.uint16], NDArray[np.float64]]:
    """x rounded to a 16-bit type: its bits, and its value."""
    rounded = torch.from_numpy(x).to(dtype)
    return rounded.view(torch.int16).numpy().view(np.uint16), rounded.double().numpy()


def exponent(x: float) -> int:
    return math.frexp(x)[1] - 1


def hopper_sum(a: NDArray[np.float64], b: NDArray[np.float64], d: float) -> float:
    """d + a @ b, cut off as Hopper's tensor cores do (simt/mma.h), of numbers that are not subnormal."""
    terms = [(Fraction(d), exponent(d))]
    terms += [
        (Fraction(x) * Fraction(y), exponent(x) + exponent(y)) for x, y in zip(a.tolist(), b.tolist(), strict=True)
    ]
    unit = Fraction(2) ** (max(largest for value, largest in terms if value) - 25)
    total = sum(int(value / unit) for value, _ in terms)
    cut = max(0, abs(total).bit_length() - 24)
    return float(unit * (abs(total) >> cut << cut) * (-1 if total < 0 else 1))


@pytest.mark.parametrize(("kernel", "dtype"), [("mma_f16", torch.float16), ("mma_bf16", torch.bfloat16)])
def test_mma_16(run: Run, kernel: str, dtype: torch.dtype) -> None:
    rng = np.random.default_rng(0)
    for exact in (True, False):  # small integers are exact on every chip

        def values(*shape: int, exact: bool = exact) -> NDArray[np.float64]:
            return rng.integers(-9, 10, shape).astype(float) if exact else rng.normal(size=shape)

        (a_bits, a), (b_bits, b) = bits_16(values(16, 16), dtype), bits_16(values(16, 8), dtype)
        d = values(16, 8).astype(np.float32)
        out = run(kernel, np.hstack([fragments(a_bits, a_16), fragments(b_bits, b_16), fragments(d, c)]), (32, 4))
        if exact:
            wanted = (d.astype(float) + a @ b).astype(np.float32)
        else:
            sums = [[hopper_sum(a[i], b[:, j], float(d[i, j])) for j in range(8)] for i in range(16)]
            wanted = np.array(sums, np.float32)
        assert np.array_equal(unpack(out, np.float32, (16, 8)), wanted)


def test_mma_s8(run: Run) -> None:
    rng = np.random.default_rng(0)
    a, b = (rng.integers(-128, 128, shape).astype(np.int8) for shape in ((16, 32), (32, 8)))
    d = rng.integers(-(10**6), 10**6, (16, 8)).astype(np.int32)
    out = run("mma_s8", np.hstack([fragments(a, a_8), fragments(b, b_8), fragments(d, c)]), (32, 4))
    assert np.array_equal(unpack(out, np.int32, (16, 8)), d + a.astype(np.int32) @ b.astype(np.int32))


def test_mma_of_infinity_and_nan_stays_in_its_row(run: Run) -> None:
    a = np.ones((16, 16))
    a[3, 5], a[4, 6] = math.inf, math.nan
    bits, _ = bits_16(a, torch.float16)
    ones, _ = bits_16(np.ones((16, 8)), torch.float16)
    zero = np.zeros((16, 8), np.float32)
    out = run("mma_f16", np.hstack([fragments(bits, a_16), fragments(ones, b_16), fragments(zero, c)]), (32, 4))
    d = unpack(out, np.float32, (16, 8))
    assert np.isposinf(d[3]).all()
    assert np.isnan(d[4]).all()
    assert (np.delete(d, [3, 4], 0) == 16).all()


@pytest.mark.parametrize("count", [2, 4])
@pytest.mark.parametrize("trans", [False, True])
def test_ldmatrix(run: Run, count: int, trans: bool) -> None:
    rows = np.arange(256, dtype=np.uint16).reshape(4, 8, 8)  # rows of matrix m come from lanes 8m to 8m + 7
    out = run(f"ldmatrix{count}{'_trans' if trans else ''}", rows.view(np.uint32), (32, count))
    for lane in LANES:
        for m in range(count):
            matrix = rows[m].T if trans else rows[m]
            pair = matrix[lane // 4, lane % 4 * 2 : lane % 4 * 2 + 2]
            assert out[lane, m : m + 1].view(np.uint16).tolist() == pair.tolist()


def test_shuffles(run: Run) -> None:
    x = np.arange(100, 132, dtype=np.uint32)
    out = run("shuffles", x, (32, 8)).astype(int) - 100
    assert out[:, 0].tolist() == [lane * 7 % 32 for lane in LANES]
    assert out[:, 1].tolist() == [lane // 8 * 8 + 5 for lane in LANES]
    assert out[:, 2].tolist() == [lane ^ 9 for lane in LANES]
    assert out[:, 3].tolist() == [lane if lane < 16 else lane ^ 24 for lane in LANES]  # later sections: own value
    assert out[:, 4].tolist() == [lane + 3 if lane < 29 else lane for lane in LANES]
    assert out[:, 5].tolist() == [lane + 3 if lane % 8 < 5 else lane for lane in LANES]
    assert out[:, 6].tolist() == [lane - 3 if lane >= 3 else lane for lane in LANES]
    assert out[:, 7].tolist() == [lane - 3 if lane % 8 >= 3 else lane for lane in LANES]


def test_votes(run: Run) -> None:
    x = np.array([lane % 3 for lane in LANES], dtype=np.uint32)
    ballot = sum(1 << lane for lane in LANES if x[lane] % 2)
    for row, lane in zip(run("votes", x, (32, 4)).tolist(), LANES, strict=True):
        assert row == [ballot, 1, 0, ballot & (0xFFFF if lane < 16 else 0xFFFF0000)]


def test_prmt(run: Run) -> None:
    cases = [  # a, b, selector, result
        (0x33221100, 0x77665544, 0x3210, 0x33221100),
        (0x33221100, 0x77665544, 0x7654, 0x77665544),
        (0x33221100, 0x77665544, 0x0426, 0x00442266),
        (0x80FF017F, 0x00800000, 0x8888, 0x00000000),  # the sign of 0x7f
        (0x80FF017F, 0x00800000, 0xBA98, 0xFFFF0000),
        (0x80FF017F, 0x00800000, 0xE3F7, 0xFF800000),
        (0x64646464, 0x04030201, 0x0504, 0x64026401),
        (0x33221100, 0x77665544, 0xFFFF3210, 0x33221100),  # only 16 bits count
    ]
    out = run("permute", np.array([case[:3] for case in cases], np.uint32), (len(cases),))
    assert [hex(x) for x in out] == [hex(case[3]) for case in cases]


def as_bits(x: NDArray[np.float32]) -> U32:
    return np.asarray(x, np.float32).view(np.uint32)


def interesting_floats(low: int, high: int) -> NDArray[np.float32]:
    """Powers of two of an exponent range, random fractions, and what lies beside them; both signs."""
    rng = np.random.default_rng(0)
    fractions = np.concatenate([1 + rng.random(60), 1 + np.arange(32) / 16 / 2, 1 + np.arange(64) / 2048 / 2])
    x = np.ldexp(fractions[None], np.arange(low, high)[:, None]).astype(np.float32).ravel()
    x = np.concatenate([x, np.nextafter(x, np.float32(0)), np.nextafter(x, np.float32(np.inf))])
    return np.concatenate([x, -x, np.array([0.0, -0.0, np.inf, -np.inf], np.float32)])


def test_ex2(run: Run) -> None:
    x = np.concatenate([interesting_floats(-30, 7), np.array([-126.0, -126.5, -200.0, 128.0, -1e30], np.float32)])
    out = run("ex2", as_bits(x), x.shape).view(np.float32)
    with np.errstate(over="ignore"):
        wanted = np.exp2(x.astype(float))
    normal = (wanted >= 2.0**-126) & (wanted < 2.0**127.99)
    assert (np.abs(out[normal] / wanted[normal] - 1) <= 2.0**-22).all()
    assert (out[wanted < 2.0**-126] == 0).all()  # .ftz
    assert np.isposinf(out[wanted >= 2.0**128]).all()
    assert out[x == 0].tolist() == [1.0] * int((x == 0).sum())


def test_conversion_to_int_rounds_to_even_and_saturates(run: Run) -> None:
    x = np.array([0.5, 1.5, 2.5, -0.5, -1.5, 2.4999998, 3e9, -3e9, np.inf, -np.inf, np.nan], np.float32)
    out = run("to_int", as_bits(x), x.shape).view(np.int32)
    assert out.tolist() == [0, 2, 2, 0, -2, 2, 2**31 - 1, -(2**31), 2**31 - 1, -(2**31), 0]


@pytest.mark.parametrize(
    ("name", "dtype", "low", "high"), [("half", torch.float16, -28, 17), ("bfloat16", torch.bfloat16, -140, 128)]
)
def test_16_bit_formats(run: Run, name: str, dtype: torch.dtype, low: int, high: int) -> None:
    x = interesting_floats(low, high)
    out = run(f"float_to_{name}", as_bits(x), x.shape)
    assert np.array_equal(out, torch.from_numpy(x).to(dtype).view(torch.int16).numpy().view(np.uint16))
    assert run(f"float_to_{name}", as_bits(np.array([np.nan])), (1,)).tolist() == [0x7FFF]
    every = np.arange(1 << 16, dtype=np.uint32)
    values = torch.from_numpy(every.astype(np.uint16).view(np.int16)).view(dtype).float().numpy()
    assert np.array_equal(run(f"{name}_to_float", every, every.shape).view(np.float32), values, equal_nan=True)


def test_e4m3(run: Run) -> None:
    x = interesting_floats(-12, 9)
    inside = np.abs(x) <= 464  # half-way between the largest and what would come next
    out = run("float_to_e4m3", as_bits(x), x.shape)
    wanted = torch.from_numpy(x[inside]).to(torch.float8_e4m3fn).view(torch.uint8).numpy()
    assert np.array_equal(out[inside], wanted)
    assert (out[~inside] == np.where(x[~inside] > 0, 0x7E, 0xFE)).all()  # saturated to 448
    assert run("float_to_e4m3", as_bits(np.array([np.nan])), (1,)).tolist() == [0x7F]
    every = np.arange(256, dtype=np.uint32)
    values = torch.from_numpy(every.astype(np.uint8)).view(torch.float8_e4m3fn).float()
    out = run("e4m3_to_half", every, every.shape).astype(np.uint16).view(np.float16)
    assert np.array_equal(out, values.half().numpy(), equal_nan=True)


def round_to_half(x: Fraction) -> float:
    """By the definition: the nearest of the neighbours, the even one on a tie."""
    if x == 0:
        return 0.0
    exponent = max(math.frexp(float(x))[1] - 1, -14)
    unit = Fraction(2) ** (exponent - 10)
    return float(round(x / unit) * unit)


def test_half_arithmetic_rounds_once(run: Run) -> None:
    rng = np.random.default_rng(0)
    operands = (rng.normal(size=(3000, 3)) * 2.0 ** rng.integers(-9, 5, (3000, 3))).astype(np.float16)
    operands[:3] = [[1 + 2**-10, 1 + 2**-10, 2**-24], [1, 2**-11, 2**-24], [2**-14, 2**-3, -(2**-24)]]
    out = run("half_arithmetic", operands.view(np.uint16).astype(np.uint32), operands.shape)
    out = out.astype(np.uint16).view(np.float16)
    for (x, y, z), got in zip(operands.tolist(), out.tolist(), strict=True):
        a, b, d = Fraction(x), Fraction(y), Fraction(z)
        assert got == [round_to_half(a + b), round_to_half(a * b), round_to_half(a * b + d)]
