"""Hopper's barriers, copies and wgmma on the SIMT layer: what each does, by the PTX ISA, and what is reported."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from simt import compile
from simt.device import RUNTIME, SimtFault, buffers, set_schedule

Bytes = NDArray[np.int8]
ROWS, WIDTH = 128, 128
UNFINISHED = r"where an asynchronous copy of thread \(0, 0, 0\) has not been waited for"
FAULTS = {
    "reads_before_the_copy_has_landed": UNFINISHED,
    "waits_for_the_phase_before": UNFINISHED,
    "one_thread_waits_for_all": UNFINISHED + "|races with a write by an asynchronous copy|that nothing has written",
    "expects_too_few_bytes": UNFINISHED,
    "expects_too_many_bytes": r"deadlock: 128 threads wait at mbarrier.try_wait .* waits for 0 arrivals and 16 bytes",
    "barrier_is_not_fenced": r"use of an mbarrier .* wrote with no fence.proxy.async after it",
    "nobody_made_the_barrier": r"mbarrier.arrive: there is no mbarrier",
    "all_arrive_for_one": r"mbarrier.arrive: the phase has had all its 1 arrivals",
    "bulk_copy_is_misaligned": r"misaligned: cp.async.bulk's source is \d+, no multiple of 16",
    "bulk_copy_has_an_odd_size": r"misaligned: cp.async.bulk's size is 24, no multiple of 16",
    "bulk_copy_past_the_end": r"cp.async.bulk of 32 bytes out of bounds: at byte 16368 of in",
    "ends_during_a_copy": r"the block ends while bulk copies are on their way",
    "copies_over_what_others_read": r"a bulk copy of 16384 bytes of shared memory .* races with a read by thread",
    "copies_over_stores": r"a bulk copy of 16384 bytes .* wrote with no fence.proxy.async after it",
    "stores_are_not_fenced": r"a wgmma's read of 16 bytes .* wrote with no fence.proxy.async after it",
    "multiplies_before_the_copy_has_landed": UNFINISHED,
    "group_has_no_fence": r"wgmma: no wgmma.fence since the group before at hopper.cu:\d+",
    "a_changes_too_soon": r"wgmma: registers of A were written while it was not finished",
    "d_changes_too_soon": r"wgmma: registers of D were written while it was not finished",
    "b_changes_too_soon": r"races with a read by thread|" + UNFINISHED,
    "returns_before_the_wait": r"the thread returns while a wgmma is unfinished",
    "a_warp_stays_away": r"deadlock: 96 threads wait at wgmma at hopper.cu:\d+, 32 have returned",
    "warps_disagree": r"divergent warpgroup: .* this one comes to wgmma with other operands",
    "wants_more_registers_than_there_are": r"setmaxnreg.inc: the block's threads would have 92160 registers",
}
schedules = pytest.mark.parametrize("seed", [0, 1, 2])


@pytest.fixture(scope="module")
def library() -> ctypes.CDLL:
    return ctypes.CDLL(str(compile.library([compile.HERE / "kernels" / "hopper.cu"])))


@pytest.fixture(autouse=True)
def hopper() -> Iterator[None]:
    RUNTIME.simt_set_compute_capability(90)
    yield
    set_schedule(0)


def run(library: ctypes.CDLL, kernel: str, source: Bytes, words: int = ROWS * WIDTH // 4) -> NDArray[np.int32]:
    data, out = torch.from_numpy(source), torch.full((words,), -1, dtype=torch.int32)
    with buffers() as b:
        library.run(kernel.encode(), ctypes.c_void_p(b.read(data, "in")), ctypes.c_void_p(b.write(out, "out")))
    return out.numpy()


def numbers(*shape: int, seed: int = 0) -> Bytes:
    return np.random.default_rng(seed).integers(-128, 128, shape).astype(np.int8)


def swizzled(rows: Bytes) -> Bytes:
    """Rows of 128 bytes as the 128-byte swizzle lays them: the 16 bytes i of row r are where i ^ (r % 8) would be."""
    out = np.empty_like(rows)
    for r in range(len(rows)):
        for i in range(8):
            j = i ^ r % 8
            out[r, 16 * j : 16 * j + 16] = rows[r, 16 * i : 16 * i + 16]
    return out


@schedules
@pytest.mark.parametrize("kernel", FAULTS)
def test_a_fault_is_reported(library: ctypes.CDLL, kernel: str, seed: int) -> None:
    set_schedule(seed)
    with pytest.raises(SimtFault, match=FAULTS[kernel]) as fault:
        run(library, kernel, numbers(ROWS, WIDTH))
    assert f"in kernel {kernel} (hopper.cu:" in str(fault.value)


def test_other_chips_have_none_of_it(library: ctypes.CDLL) -> None:
    RUNTIME.simt_set_compute_capability(86)
    with pytest.raises(SimtFault, match=r"mbarrier.init needs sm_90a"):
        run(library, "right_copy", numbers(ROWS, WIDTH))


@schedules
def test_a_tensor_copy_swizzles(library: ctypes.CDLL, seed: int) -> None:
    set_schedule(seed)
    rows = numbers(ROWS, WIDTH)
    assert np.array_equal(run(library, "right_copy", rows).view(np.int8).reshape(rows.shape), swizzled(rows))


def test_a_tensor_copy_has_zeros_outside_the_matrix(library: ctypes.CDLL) -> None:
    rows, wanted = numbers(ROWS, WIDTH), np.zeros((ROWS, WIDTH), np.int8)
    wanted[3:, : WIDTH - 48] = rows[:-3, 48:]
    out = run(library, "right_copy_beyond_the_edges", rows)
    assert np.array_equal(out.view(np.int8).reshape(rows.shape), swizzled(wanted))


@schedules
def test_barriers_go_through_their_phases(library: ctypes.CDLL, seed: int) -> None:
    set_schedule(seed)
    rows = numbers(ROWS, WIDTH)
    assert np.array_equal(run(library, "right_ring", rows).view(np.int8).reshape(rows.shape), rows)


@schedules
def test_a_product_of_copied_rows(library: ctypes.CDLL, seed: int) -> None:
    set_schedule(seed)
    rows = numbers(ROWS, WIDTH)
    out = run(library, "right_product", rows, 128 * 64).reshape(128, 64)
    sums = rows[:, :32].astype(int).sum(1)
    assert np.array_equal(out, [[sums[column(lane, i)] for i in range(64)] for lane in range(128)])


def test_a_sum_is_rubbish_before_the_wait(library: ctypes.CDLL) -> None:
    assert (run(library, "reads_the_sum_too_soon", numbers(ROWS, WIDTH), 128 * 64) == 0x5BADF00D).all()


def a_place(thread: int, i: int) -> tuple[int, int]:
    """Row and byte of K of byte i of a thread's registers of A (PTX ISA, "Register fragments for wgmma")."""
    row = thread // 32 * 16 + thread % 32 // 4 + (8 if i % 8 >= 4 else 0)
    return row, thread % 4 * 4 + i % 4 + (16 if i >= 8 else 0)


def row(thread: int, i: int) -> int:
    return thread // 32 * 16 + thread % 32 // 4 + (8 if i % 4 >= 2 else 0)


def column(thread: int, i: int) -> int:
    return i // 4 * 8 + thread % 4 * 2 + i % 2


@pytest.mark.parametrize(
    ("kernel", "n", "step"), [("s8_128", 128, 3), ("s8_256", 256, 1), ("f16_128", 128, 2), ("bf16_176", 176, 0)]
)
def test_wgmma(library: ctypes.CDLL, kernel: str, n: int, step: int) -> None:
    types = {"s8": torch.int8, "f16": torch.float16, "bf16": torch.bfloat16}
    dtype = types[kernel.split("_")[0]]
    a, b = whole_numbers(64, 32 // dtype.itemsize, dtype), whole_numbers(n, 32 // dtype.itemsize, dtype, seed=1)
    rows = numbers(n, 128, seed=3)
    rows[:, 32 * step : 32 * step + 32] = b.view(torch.int8).numpy()
    check_product(library, kernel, a, b, swizzled(rows))


@pytest.mark.parametrize(("kernel", "n", "step"), [("f16", 64, 0), ("bf16", 64, 3), ("f16", 128, 2), ("bf16", 128, 1)])
def test_wgmma_with_columns_side_by_side(library: ctypes.CDLL, kernel: str, n: int, step: int) -> None:
    dtype = {"f16": torch.float16, "bf16": torch.bfloat16}[kernel]
    a, b = whole_numbers(64, 16, dtype), whole_numbers(n, 16, dtype, seed=1)
    memory = whole_numbers(n, 64, dtype, seed=3)  # [column][k]
    memory[:, 16 * step : 16 * step + 16] = b
    rows = memory.T.reshape(64, n // 64, 64).transpose(0, 1).contiguous()  # 64 columns of each k, then the next
    check_product(library, f"n_major_{kernel}_{n}", a, b, swizzled(rows.view(torch.int8).numpy().reshape(n, 128)))


def whole_numbers(rows: int, columns: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    """Whose sums are exact."""
    return torch.from_numpy(numbers(rows, columns, seed=seed)).to(dtype)


def check_product(library: ctypes.CDLL, kernel: str, a: Tensor, b: Tensor, memory: Bytes) -> None:
    n, out_type = len(b), torch.int32 if kernel.startswith("s8") else torch.float32
    d = torch.from_numpy(np.random.default_rng(2).integers(-(10**6), 10**6, (64, n))).to(out_type)
    a_bytes = a.view(torch.int8).numpy()
    a_registers = np.array([[a_bytes[a_place(thread, i)] for i in range(16)] for thread in range(128)], np.int8)
    places = [[(row(thread, i), column(thread, i)) for i in range(n // 2)] for thread in range(128)]
    bits = d.view(torch.int32).numpy()
    d_registers = np.array([[bits[place] for place in each] for each in places], np.int32)
    memory = np.concatenate([part.view(np.int8).ravel() for part in (memory, a_registers, d_registers)])
    out = run(library, f"multiply_{kernel}", memory, 128 * n // 2).reshape(128, n // 2)
    wanted = (d.double() + a.double() @ b.double().T).to(out_type).view(torch.int32).numpy()
    assert np.array_equal(out, [[wanted[place] for place in each] for each in places])
