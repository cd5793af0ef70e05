"""The instructions on the chip: the tables that tests/simt holds its twins to, and theirs bit for bit."""

from __future__ import annotations

import ctypes
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from simt import compile, test_hopper, test_twins

from pybatch import ops

if not ops.CUDA:
    pytest.skip("needs a GPU, and pybatch built with CUDA", allow_module_level=True)

CAPABILITY = torch.cuda.get_device_capability()
hopper = pytest.mark.skipif(CAPABILITY != (9, 0), reason="needs a Hopper GPU")

Run = Callable[..., NDArray[np.uint32]]


def built(name: str, folder: Path) -> ctypes.CDLL:
    """tests/simt/kernels/NAME.cu for this chip."""
    library, chip = folder / f"{name}.so", "90a" if CAPABILITY == (9, 0) else "{}{}".format(*CAPABILITY)
    flags = ["-std=c++20", "-shared", "-Xcompiler=-fPIC", "--fmad=false", "--expt-relaxed-constexpr"]
    target = f"-gencode=arch=compute_{chip},code=sm_{chip}"
    source = compile.HERE / "kernels" / f"{name}.cu"
    subprocess.run(["nvcc", *flags, target, f"-I{compile.CSRC}", "-o", library, source], check=True)
    return ctypes.CDLL(str(library))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """As in test_twins, on the chip."""
    library = built("twins", tmp_path_factory.mktemp("twins"))

    def call(kernel: str, registers: NDArray[np.uint32], shape: tuple[int, ...]) -> NDArray[np.uint32]:
        source = torch.from_numpy(np.ascontiguousarray(registers).view(np.int32)).cuda()
        out = torch.full(shape, -1, dtype=torch.int32, device="cuda")
        library.run(kernel.encode(), ctypes.c_void_p(source.data_ptr()), ctypes.c_void_p(out.data_ptr()), shape[0])
        torch.cuda.synchronize()
        return out.cpu().numpy().view(np.uint32)

    return call


# Sums of 16-bit products that are not exact are rounded as on Hopper: other chips have ways of their own.
globals().update(
    {
        name: test
        for name, test in vars(test_twins).items()
        if name.startswith("test_") and (name != "test_mma_16" or CAPABILITY == (9, 0))
    }
)


@hopper
def test_hoppers_instructions(tmp_path: Path) -> None:
    on_chip, twin = built("hopper", tmp_path), ctypes.CDLL(str(compile.library([compile.HERE / "kernels/hopper.cu"])))
    test_hopper.RUNTIME.simt_set_compute_capability(90)
    rows = test_hopper.numbers(128, 128)
    programs = dict.fromkeys(("right_copy", "right_copy_beyond_the_edges", "right_ring", "right_product"), rows)
    for kernel, n in (("multiply_s8_128", 128), ("multiply_s8_256", 256)):
        programs[kernel] = test_hopper.numbers(n * 128 + 128 * 16 + 128 * n // 2 * 4)
    for kernel, n, dtype in (("multiply_f16_128", 128, torch.float16), ("multiply_bf16_176", 176, torch.bfloat16)):
        halves, sums = torch.randn(n * 64 + 128 * 8).to(dtype), torch.randn(128 * n // 2)
        programs[kernel] = np.concatenate([part.view(torch.int8).numpy() for part in (halves, sums)])
    for kernel, memory in programs.items():
        words = 128 * 64 if kernel == "right_product" else 4096 if kernel.startswith("right") else len(memory) // 4
        source, out = torch.from_numpy(memory).cuda(), torch.full((words,), -1, dtype=torch.int32, device="cuda")
        on_chip.run(kernel.encode(), ctypes.c_void_p(source.data_ptr()), ctypes.c_void_p(out.data_ptr()))
        torch.cuda.synchronize()
        assert np.array_equal(out.cpu().numpy(), test_hopper.run(twin, kernel, memory, words)), kernel
