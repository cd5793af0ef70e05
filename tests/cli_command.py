"""The pybatch command as a process."""

from __future__ import annotations

import sys

COMMAND = [sys.executable, "-P", "-c", "from pybatch.cli import main; main()"]
FAST = ["--num-kv-blocks", "128", "--max-tokens", "8", "--temperature", "0", "--threads", "1"]
