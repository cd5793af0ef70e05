"""The kernels under the real AddressSanitizer: it reports planted faults, and none in the suites.

It has to be in the process from its start on, so that a pytest of its own runs the tests.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from simt import compile

LIBRARY = Path(subprocess.check_output([compile.CXX, "-print-file-name=libasan.so"], text=True).strip())
pytestmark = pytest.mark.skipif(not LIBRARY.is_absolute(), reason="the compiler has no libasan.so")
# Attention's other tests take minutes, on the same kernels.
SUITES = ["test_ops.py", "test_matmul_hopper.py"]
SOME_TESTS = "not ptxas and (not attention or matches_float64)"


def run_tests(*arguments: str) -> None:
    environment = {
        "SIMT_SANITIZER": "address",
        "LD_PRELOAD": str(LIBRARY),
        "ASAN_OPTIONS": "detect_leaks=0:halt_on_error=0:symbolize=0",  # a fault is raised once the kernel has ended
    }
    command = [sys.executable, "-m", "pytest", "-x", "-p", "no:cacheprovider", *arguments]
    done = subprocess.run(command, cwd=compile.HERE, env=os.environ | environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_planted_faults_are_reported() -> None:
    run_tests("address_faults.py")


def test_the_kernels_have_none() -> None:
    run_tests(*SUITES, "-k", SOME_TESTS)
