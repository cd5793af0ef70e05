"""README.md's figures are those of the runs that bench/results/ keeps."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def test_readme_has_the_newest_runs() -> None:
    check = subprocess.run(
        [sys.executable, str(ROOT / "bench/figures.py"), "--check"], capture_output=True, text=True, check=False
    )
    assert check.returncode == 0, check.stderr
