"""The native parts keep their promises: stable ABI, no Python in the ops, an instruction set that can be forced."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pybatch import ops

_C = ops.library._C  # torch must be there first; ops sees to that

PACKAGE = Path(ops.__file__).parents[1]


def undefined_symbols(library: Path) -> list[str]:
    listing = subprocess.run(
        ["nm", "-D", "-C", "--undefined-only", library], capture_output=True, text=True, check=True
    )
    return [line.split(maxsplit=1)[1] for line in listing.stdout.splitlines()]


def test_ops_need_only_the_c_shim_of_torch() -> None:
    symbols = undefined_symbols(PACKAGE / "libpybatch_cpu.so")
    assert any(s.startswith("aoti_torch_") for s in symbols)
    assert [s for s in symbols if s.startswith(("at::", "c10::", "torch::", "Py", "_Py"))] == []


def run_with_isa(isa: str) -> subprocess.CompletedProcess[str]:
    code = "from pybatch import ops; print(ops.ISA)"
    return subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "PYBATCH_ISA": isa}, capture_output=True, text=True
    )


@pytest.mark.parametrize("isa", _C.possible_isas())
def test_isa_can_be_forced(isa: str) -> None:
    assert run_with_isa(isa).stdout.strip() == isa


def test_an_impossible_isa_is_an_error_that_lists_the_possible() -> None:
    result = run_with_isa("sse9")
    assert result.returncode != 0
    message = result.stderr.splitlines()[-1]
    assert message.startswith("ValueError: PYBATCH_ISA=sse9")
    assert all(isa in message for isa in _C.possible_isas())


def test_the_best_possible_isa_is_chosen_by_default() -> None:
    assert os.environ.get("PYBATCH_ISA") or _C.possible_isas()[0] == ops.ISA


SMALL_SIGNAL_STACK = """
import ctypes
class Stack(ctypes.Structure):
    _fields_ = [("start", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t)]
memory = ctypes.create_string_buffer(8192)
assert ctypes.CDLL(None).sigaltstack(ctypes.byref(Stack(ctypes.addressof(memory), 0, len(memory))), None) == 0
from pybatch import ops
print(*ops.library._C.possible_isas())
"""


@pytest.mark.skipif("amx" not in _C.possible_isas(), reason="needs AMX")
def test_a_process_that_is_refused_tiles_runs_without_amx() -> None:
    """Linux refuses where a thread has a signal stack that AMX's registers would not fit."""
    environment = {name: value for name, value in os.environ.items() if name != "PYBATCH_ISA"}
    result = subprocess.run(
        [sys.executable, "-c", SMALL_SIGNAL_STACK], env=environment, capture_output=True, text=True, check=True
    )
    assert result.stdout.split() == [isa for isa in _C.possible_isas() if isa != "amx"]
