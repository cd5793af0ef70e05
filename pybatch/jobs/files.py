"""Opens what a job reads and writes; "-" is standard input or output."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import BinaryIO

STANDARD = "-"


def open_rows(path: str) -> BinaryIO:
    return sys.stdin.buffer if path == STANDARD else Path(path).open("rb")


def measure(path: str) -> tuple[int | None, int | None]:
    """(rows, bytes) of a file; None for what can be read only once."""
    if path == STANDARD or not Path(path).is_file():
        return None, None
    with Path(path).open("rb") as file:
        return sum(1 for line in file if line.strip()), os.fstat(file.fileno()).st_size


def expect_free(path: str, *, overwrite: bool, rows: str) -> None:
    """FileExistsError if results may not go to ``path``: it is a file, and not to be overwritten, or it holds the rows;
    FileNotFoundError if its folder does not exist."""
    target = Path(path)
    if path == STANDARD:
        return
    if target.is_file() and Path(rows).is_file() and target.samefile(rows):
        raise FileExistsError(f"{path} holds the prompts; the results need a file of their own")
    if target.is_file() and not overwrite:
        raise FileExistsError(f"{path} exists; --overwrite replaces it")
    if not target.parent.is_dir():
        raise FileNotFoundError(f"{path}: there is no folder {target.parent}")


def open_results(path: str) -> BinaryIO:
    return sys.stdout.buffer if path == STANDARD else Path(path).open("wb")
