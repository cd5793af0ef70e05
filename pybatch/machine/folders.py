"""Folders that the caller names."""

from __future__ import annotations

import errno
import os
from pathlib import Path


def of_home(path: str | Path) -> Path:
    """With the user's folder in place of ~; as it is where there is none, which Path.expanduser raises for."""
    return Path(os.path.expanduser(path))


def make_folder(argument: str, path: Path, mode: int = 0o777) -> None:
    """Makes it, with those above it, unless it is there. Raises ValueError, with the argument's name, if it cannot."""
    try:
        path.mkdir(parents=True, exist_ok=True, mode=mode)
        if not os.access(path, os.W_OK | os.X_OK):
            raise OSError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        raise ValueError(f"{argument}: expected a folder to write to, got {path}: {error.strerror}") from error
