"""The ops on every instruction set that this processor can run, each in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ops import isa_fuzz
from torch import Tensor

from pybatch import _C, ops

HERE = Path(__file__).parent
ISAS = _C.possible_isas()
ALL_SETS_AT_ONCE = ("test_isas.py", "test_call_fuzz.py")
SUITES = sorted(
    {*HERE.glob("test_*.py")} - {HERE / name for name in (*ALL_SETS_AT_ONCE, "test_opcheck.py", "test_copy_blocks.py")}
)
# What is asked of the method alone: each set's draws are compared with float64's one by one.
OF_THE_METHOD = ("opcheck", "transformers", "draws_follow_the_softmax", "as_often_as_a_common_race")
# All that avx2_vnni has kernels of its own for, and of attention what is its own: quantised caches.
OF_INTEGERS = ("test_matmul.py", "test_matmul_gguf.py", "test_experts.py", "test_int4_cache.py")


def run(isa: str, *command: str | Path) -> None:
    environment = os.environ | {"PYBATCH_ISA": isa, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    result = subprocess.run([sys.executable, *command], env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr


@cache
def outputs(isa: str) -> dict[str, Tensor]:
    with TemporaryDirectory() as folder:
        file = Path(folder, "outputs.pt")
        run(isa, HERE / "isa_outputs.py", file)
        saved = torch.load(file)
    assert saved["isa"] == isa
    found: dict[str, Tensor] = saved["outputs"]
    return found


def test_the_instruction_set_is_the_one_asked_for_or_the_best() -> None:
    assert os.environ.get("PYBATCH_ISA", ISAS[0]) == ops.ISA


@pytest.mark.parametrize("isa", [isa for isa in ISAS if isa != ops.ISA])
def test_the_other_instruction_sets_pass_the_same_tests(isa: str) -> None:
    # The portable kernels take minutes where others take seconds: of them, prompts of 1,025 tokens are long enough.
    left_out = [*OF_THE_METHOD, *(["2000-"] if isa == "portable" else [])]
    suites = [suite for suite in SUITES if isa != "avx2_vnni" or suite.name in OF_INTEGERS]
    run(isa, "-m", "pytest", "-p", "no:cacheprovider", "-k", f"not ({' or '.join(left_out)})", *suites)


@pytest.mark.parametrize("isa", [isa for isa in ISAS if isa in ("amx", "avx512", "avx2_vnni")])
def test_wider_sets_give_the_bits_of_avx2(isa: str) -> None:
    narrow, wide = outputs("avx2"), outputs(isa)
    for name, out in wide.items():
        if name.startswith("dense-torch.bfloat16-same") and isa == "amx":  # whose order of a sum is the chip's
            torch.testing.assert_close(narrow[name], out, rtol=1e-5, atol=1e-4, msg=name)
        else:
            assert torch.equal(narrow[name], out), name


@pytest.mark.skipif(len(ISAS) < 2, reason="needs another instruction set than the portable one")
def test_random_matmuls_have_the_same_bits_on_every_instruction_set() -> None:
    """`cd tests && python -m ops.isa_fuzz --examples N` looks for longer."""
    isa_fuzz.fuzz(100)


@pytest.mark.skipif(len(ISAS) < 2, reason="needs another instruction set than the portable one")
def test_portable_agrees_within_rounding_and_w8a8_to_the_bit() -> None:
    """It may not fuse a product and a sum; W8A8 sums integers."""
    portable, best = outputs("portable"), outputs(ISAS[0])
    for name in [name for name in best if "-" in name]:  # a sampled token may differ after one rounding
        if name.startswith("w8a8"):
            assert torch.equal(portable[name], best[name]), name
        else:
            size = float(best[name].abs().max())
            torch.testing.assert_close(portable[name], best[name], rtol=1e-2, atol=1e-4 * max(1, size), msg=name)


@pytest.mark.skipif(ops.ISA != "amx", reason="needs AMX")
@settings(max_examples=30, deadline=None)
@given(m=st.integers(1, 40), n=st.integers(1, 70), k=st.integers(1, 1200))
def test_bf16_by_bf16_sums_as_tiles_do(m: int, n: int, k: int) -> None:
    """Bit for bit as Intel's manual has TDPBF16PS: of 32 k, even and odd ones apart. float64, rounded at every step,
    stands for the fused multiply-add; these numbers leave no room for the second rounding to show."""
    random = torch.Generator().manual_seed(k)
    x, weight = (torch.randn(rows, k, generator=random).bfloat16() for rows in (m, n))
    padded = [torch.nn.functional.pad(t, (0, -k % 32)).double().unflatten(1, (-1, 16, 2)) for t in (x, weight)]
    total = torch.zeros(m, n)
    for of_x, of_weight in zip(*(t.unbind(1) for t in padded), strict=True):
        apart = torch.zeros(m, n, 2)
        for pair in range(16):
            apart = (apart.double() + of_x[:, None, pair] * of_weight[None, :, pair]).float()
        total = total + (apart[..., 0] + apart[..., 1])
    out = ops.matmul_dense(x, ops.pack_dense(weight), out=torch.empty(m, n))
    assert torch.equal(out, total)


@pytest.mark.skipif(ops.ISA != "amx", reason="needs AMX")
@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 4),
    n=st.integers(1, 70),
    k=st.integers(1, 300),
    of_x=st.integers(-130, 0),
    of_weight=st.integers(-40, 0),
)
def test_few_rows_of_bf16_have_the_bits_of_tiles(rows: int, n: int, k: int, of_x: int, of_weight: int) -> None:
    """Where products, sums and numbers themselves are subnormal too."""
    random = torch.Generator().manual_seed(k)
    x, weight = (
        (torch.randn(count, k, generator=random) * 2.0**exponent).bfloat16()
        for count, exponent in ((20, of_x), (n, of_weight))
    )
    packed = ops.pack_dense(weight)
    many, few = (ops.matmul_dense(x[:m], packed, out=torch.empty(m, n)) for m in (20, rows))
    assert torch.equal(many[:rows].view(torch.int32), few.view(torch.int32))
