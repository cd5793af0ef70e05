"""What the SIMT layer reports, kernel by kernel of kernels/layer.cu, and that it reports nothing else."""

from __future__ import annotations

import ctypes
import re

import pytest
import torch
from torch import Tensor

from simt import compile
from simt.device import SimtFault, buffers, set_schedule

FAULTS = {
    "reads_past_the_end": r"read of 4 bytes out of bounds: at byte 256 of in, which has 256 bytes",
    "reads_before_the_start": r"read of 4 bytes outside every buffer",
    "reads_far_away": r"read of 4 bytes outside every buffer",
    "writes_an_input": r"write of 4 bytes to in, which is an input",
    "vector_load_is_misaligned": r"misaligned ld.global.v4: address 0x[0-9a-f]+ is no multiple of 16",
    "struct_load_is_misaligned": r"misaligned",
    "leaves_a_local_array": r"index outside an array",
    "points_past_a_local_array": r"pointer that is misaligned, null or outside its array",
    "shifts_too_far": r"shift by more than the width",
    "divides_by_zero": r"division by zero",
    "adds_too_much": r"overflow of a signed addition",
    "leaves_shared_memory": r"write of 4 bytes out of bounds: at byte 256 of shared memory, which has 256 bytes",
    "reads_what_nothing_wrote": r"at byte 252 that nothing has written",
    "reads_without_a_barrier": r"read .* races with a write by thread \(\d+, 0, 0\)|that nothing has written",
    "writes_again_without_a_barrier": r"races with a (read|write) by thread",
    "two_threads_write_one_place": r"write .* races with a write by thread",
    "orders_only_the_warp": r"read .* races with a write by thread|that nothing has written",
    "shuffles_for_a_barrier": r"read .* races with a write by thread",
    "atomic_meets_plain": r"races with a",
    "barriers_differ": r"divergent barrier: other threads wait at the barrier at layer.cu:\d+, this one comes to",
    "some_return_early": r"divergent barrier",
    "barrier_waits_for_too_many": r"divergent barrier: the thread returns while others wait",
    "wait_crosswise": r"deadlock: 32 threads wait at named_barrier_sync at layer.cu:\d+, 32 threads wait",
    "barrier_counts_differ": r"barrier 1 for (32|64) threads, but others wait at it for (32|64)",
    "lanes_disagree": r"divergent warp: other lanes of the warp wait at __shfl_(down|xor)_sync at layer.cu:\d+",
    "mask_names_the_departed": r"__shfl_sync: its mask names lanes that have returned"
    r"|deadlock: \d+ threads wait at __shfl_sync",
    "lane_is_not_in_its_mask": r"__shfl_sync: the calling lane is not in its mask",
    "never_waits": r"where an asynchronous copy of thread \(\d+, 0, 0\) has not been waited for",
    "waits_for_the_group_before": r"where an asynchronous copy of thread \(\d+, 0, 0\) has not been waited for",
    "never_commits": r"where an asynchronous copy of thread \(\d+, 0, 0\) has not been waited for",
    "waits_without_a_barrier": r"races with a write|has not been waited for|that nothing has written",
    "refills_while_others_read": r"races with a (read|write) by thread",
    "copies_past_the_end": r"cp.async of 16 bytes out of bounds: at byte 256 of in",
    "copy_is_misaligned": r"misaligned cp.async destination",
    "reads_before_it_waits": r"read of 4 bytes before griddepcontrol.wait, while kernels before may run",
    "writes_before_it_waits": r"write of 4 bytes before griddepcontrol.wait",
    "copies_before_it_waits": r"cp.async of 4 bytes before griddepcontrol.wait",
    "hands_over_without_a_release": r"read of what another block has written and not released",
    "hands_over_without_an_atomic": r"read of what another block has written",
    "hands_over_without_an_acquire": r"read .* another block has written, without an atomic and then a fence",
    "some_return_without_waiting": r"the thread returns without griddepcontrol.wait",
}
RIGHT = [
    "right_with_barriers",
    "right_with_named_barriers",
    "right_within_warps",
    "right_with_async_copies",
    "right_with_atomics",
    "right_behind_the_wait",
    "right_from_block_to_block",
]
schedules = pytest.mark.parametrize("seed", [0, 1, 2])


@pytest.fixture(scope="module")
def library() -> ctypes.CDLL:
    return ctypes.CDLL(str(compile.library([compile.HERE / "kernels" / "layer.cu"])))


@pytest.fixture(autouse=True)
def in_order() -> object:
    yield
    set_schedule(0)


def run(library: ctypes.CDLL, kernel: str, seed: int) -> tuple[Tensor, Tensor]:
    source, out = torch.arange(64.0), torch.full((64,), torch.nan)
    set_schedule(seed)
    with buffers() as b:
        pointers = ctypes.c_void_p(b.read(source, "in")), ctypes.c_void_p(b.write(out, "out"))
        library.run(kernel.encode(), *pointers, 64)
    return source, out


@schedules
@pytest.mark.parametrize("kernel", FAULTS)
def test_a_fault_is_reported(library: ctypes.CDLL, kernel: str, seed: int) -> None:
    with pytest.raises(SimtFault, match=FAULTS[kernel]) as fault:
        run(library, kernel, seed)
    assert f"in kernel {kernel} (layer.cu:" in str(fault.value)
    assert re.search(r"block \([01], 0, 0\)", str(fault.value))


@schedules
@pytest.mark.parametrize("kernel", RIGHT)
def test_what_is_right_is_not_reported(library: ctypes.CDLL, kernel: str, seed: int) -> None:
    source, out = run(library, kernel, seed)
    assert torch.equal(out, source.roll(-1))


def test_the_fault_of_one_launch_is_not_that_of_the_next(library: ctypes.CDLL) -> None:
    with pytest.raises(SimtFault):
        run(library, "reads_far_away", 0)
    run(library, "right_with_barriers", 0)
