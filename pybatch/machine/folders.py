"""Folders that the caller names."""

from __future__ import annotations

from pathlib import Path


def make_folder(argument: str, path: Path, mode: int = 0o777) -> None:
    """Makes it, with those above it, unless it is there. Raises ValueError, with the argument's name, if it cannot."""
    try:
        path.mkdir(parents=True, exist_ok=True, mode=mode)
    except OSError as error:
        raise ValueError(f"{argument}: expected a folder to write to, got {path}: {error.strerror}") from error
