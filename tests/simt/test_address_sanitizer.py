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
SUITES = ["address_faults.py", "test_ops.py", "test_matmul_hopper.py"]
# Attention's other tests take minutes, and transformers seconds to import, on the same kernels.
SOME_TESTS = "not transformers and (not attention or matches_float64)"


def test_planted_faults_are_reported_and_the_kernels_have_none() -> None:
    environment = {
        "SIMT_SANITIZER": "address",
        "LD_PRELOAD": str(LIBRARY),
        "ASAN_OPTIONS": "detect_leaks=0:halt_on_error=0:symbolize=0",  # a fault is raised once the kernel has ended
    }
    command = [sys.executable, "-m", "pytest", "-x", "-p", "no:cacheprovider", *SUITES, "-k", SOME_TESTS]
    done = subprocess.run(command, cwd=compile.HERE, env=os.environ | environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
