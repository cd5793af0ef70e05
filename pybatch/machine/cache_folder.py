"""Where pybatch keeps what it can find out again."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path | None:
    """$XDG_CACHE_HOME/pybatch or ~/.cache/pybatch, which may not exist yet; None where there is no home."""
    given = os.environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(given):  # the specification has relative ones ignored
        return Path(given) / "pybatch"
    home = os.environ.get("HOME", os.path.expanduser("~"))
    return Path(home) / ".cache" / "pybatch" if os.path.isabs(home) else None
