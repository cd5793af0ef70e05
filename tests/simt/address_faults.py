"""Faults that AddressSanitizer reports, with kernel, block and thread; test_address_sanitizer.py runs these tests."""

from __future__ import annotations

import ctypes

import pytest
import torch

from simt import compile
from simt.device import RUNTIME, SimtFault, raise_fault
from simt.test_layer import RIGHT, run

FAULTS = {
    "reads_past_the_end": r"use-after-poison: read of 4 bytes at byte 256 of in, which has 256 bytes",
    "reads_before_the_start": r"use-after-poison: read of 4 bytes",
    "leaves_shared_memory": r"use-after-poison: write of 4 bytes at byte 256 of shared memory, which has 256 bytes",
    "reads_past_a_local_array_elsewhere": r"stack-buffer-overflow: read of 4 bytes",
    "copies_past_the_end": r"cp.async of 16 bytes out of bounds: at byte 256 of in",
}


@pytest.fixture(scope="module")
def library() -> ctypes.CDLL:
    return ctypes.CDLL(str(compile.library([compile.HERE / "kernels" / "layer.cu"])))


@pytest.mark.parametrize("kernel", FAULTS)
def test_a_fault_is_reported(library: ctypes.CDLL, kernel: str) -> None:
    with pytest.raises(SimtFault, match=FAULTS[kernel]) as fault:
        run(library, kernel, seed=0)
    assert f"in kernel {kernel} (layer.cu:" in str(fault.value)
    assert "block (0, 0, 0), thread (" in str(fault.value)


def test_a_freed_buffer_is_reported(library: ctypes.CDLL) -> None:
    source, freed = (RUNTIME.simt_allocate(256, name, 1) for name in (b"in", b"freed"))
    RUNTIME.simt_release(freed)
    library.run(b"right_with_barriers", ctypes.c_void_p(source), ctypes.c_void_p(freed), 64)
    with pytest.raises(SimtFault, match=r"heap-use-after-free: write of 4 bytes\n  in kernel right_with_barriers"):
        raise_fault()
    RUNTIME.simt_release(source)


@pytest.mark.parametrize("kernel", RIGHT)
def test_what_is_right_is_not_reported(library: ctypes.CDLL, kernel: str) -> None:
    source, out = run(library, kernel, seed=1)
    assert torch.equal(out, source.roll(-1))
