"""Random calls end with a result or an error, on every instruction set: never a crash, a hang or a stray write."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pybatch import _C

CALLS = 1500


@pytest.mark.parametrize("isa", _C.possible_isas())
def test_random_calls(isa: str, tmp_path: Path) -> None:
    progress = tmp_path / "progress"
    command = [sys.executable, Path(__file__).with_name("call_fuzz.py"), progress, str(CALLS)]
    path = os.pathsep.join(filter(None, sys.path))
    environment = os.environ | {"PYBATCH_ISA": isa, "PYTHONPATH": path}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert (result.returncode, progress.read_text().strip()) == (0, "done"), result.stderr
