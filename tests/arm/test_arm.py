"""The CPU kernels on an ARM processor: cross-compiled with checks of their own, as torch is not there, and emulated."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

HERE = Path(__file__).parent
BUILD = HERE.parent.parent / "build" / "arm"  # compiled again only where a source has changed
COMPILER, EMULATOR = "aarch64-linux-gnu-g++", "qemu-aarch64"

ISAS = ["neon_i8mm", "neon_dotprod", "neon", "portable"]  # best first
# Of each set but the last the processor, as the emulator knows it, that has no better.
PROCESSORS = {"neon_i8mm": "max", "neon_dotprod": "cortex-a76", "neon": "cortex-a57"}

MISSING = [name for name in (COMPILER, EMULATOR) if shutil.which(name) is None]
MISSING += [f"Python's {name}" for name in ("cmake", "ninja") if importlib.util.find_spec(name) is None]
pytestmark = pytest.mark.skipif(
    bool(MISSING) and not os.environ.get("CI"),
    reason=f"needs {', '.join(MISSING)}; on Debian: apt-get install g++-aarch64-linux-gnu qemu-user",
)


@cache
def checks() -> Path:
    definitions = {
        "CMAKE_BUILD_TYPE": "Release",
        "CMAKE_SYSTEM_NAME": "Linux",
        "CMAKE_SYSTEM_PROCESSOR": "aarch64",
        "CMAKE_CXX_COMPILER": COMPILER,
    }
    environment = os.environ | {"PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])}
    configure = ["-G", "Ninja", "-S", HERE, "-B", BUILD, *(f"-D{name}={value}" for name, value in definitions.items())]
    for arguments in (configure, ["--build", BUILD, "--parallel", "2"]):
        command = [sys.executable, "-m", "cmake", *arguments]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    return BUILD / "check_kernels"


@cache
def run(processor: str, named: str | None = None) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYBATCH_ISA": named or ""}
    # Only the last set is compared with float64, which takes long to emulate: the others have its bits.
    command = [EMULATOR, "-cpu", processor, checks(), *(["bits alone"] if named != ISAS[-1] else [])]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)


def checked(isa: str) -> subprocess.CompletedProcess[str]:
    """By the processor that chooses the set: an instruction that it lacks would end the run. The last set is named."""
    return run(PROCESSORS[isa]) if isa in PROCESSORS else run("max", isa)


def lines(result: subprocess.CompletedProcess[str], name: str) -> list[str]:
    return [value for key, _, value in (line.partition(" ") for line in result.stdout.splitlines()) if key == name]


def digests(isa: str) -> dict[str, str]:
    """Of the bits of each case's result."""
    pairs = (line.rpartition(" ") for line in checked(isa).stdout.splitlines() if not line.startswith("possible "))
    return {name: digest for name, _, digest in pairs if len(digest) == 16}


@pytest.mark.parametrize("isa", ISAS)
def test_kernels_agree_with_float64_and_rows_do_not_depend_on_others_or_threads(isa: str) -> None:
    result = checked(isa)
    assert lines(result, "set") == [isa], result.stderr
    assert result.returncode == 0, "\n".join(lines(result, "FAILED")) + result.stderr
    assert len(digests(isa)) > 200


@pytest.mark.parametrize("isa", ISAS[:-1])
def test_instruction_sets_give_the_same_bits(isa: str) -> None:
    """Of every kernel: ARM's portable kernels fuse products and sums too."""
    found, wanted = digests(isa), digests("portable")
    assert found.keys() == wanted.keys()
    assert [name for name in wanted if found[name] != wanted[name]] == []


@pytest.mark.parametrize("isa", PROCESSORS)
def test_the_best_set_of_the_processor_is_chosen(isa: str) -> None:
    assert lines(checked(isa), "possible") == ISAS[ISAS.index(isa) :]


def test_a_set_that_the_processor_lacks_is_refused() -> None:
    result = run("cortex-a76", "neon_i8mm")
    assert result.returncode == 2
    wanted = "PYBATCH_ISA=neon_i8mm is not possible here; possible on this processor: neon_dotprod, neon, portable"
    assert result.stderr.strip() == wanted
