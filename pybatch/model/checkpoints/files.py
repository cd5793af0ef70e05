"""Files that a download may have left unfinished, and what to say of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, TypeVar

from pybatch.model.errors import ModelError

MAX_JSON = 1 << 28  # bytes
C = TypeVar("C", dict[str, Any], list[Any])
LFS_POINTER = b"version https://git-lfs.github.com/spec/"


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; {} if there is no such file. Raises ModelError if it holds anything else."""
    return _content(path, dict, "a JSON object")


def read_json_list(path: Path) -> list[Any]:
    """The same of a list; [] if there is no such file."""
    return _content(path, list, "a JSON list")


def _content(path: Path, kind: type[C], expected: str) -> C:
    try:
        if not path.exists():
            return kind()
        if path.stat().st_size > MAX_JSON:
            raise ModelError(f"{path}: expected {expected}, got {path.stat().st_size:,} bytes")
        content = json.loads(path.read_bytes().decode("utf-8-sig"))
    except OSError as error:
        raise unreadable(path, expected, error) from error
    except (ValueError, RecursionError) as error:
        if isinstance(error, ModelError):
            raise
        raise unreadable(path, expected, error) from error
    if not isinstance(content, kind):
        raise ModelError(f"{path}: expected {expected}, got {type(content).__name__}")
    return content


def unreadable(path: Path, expected: str, error: Exception) -> ModelError:
    """The error for a file that is not what its name says, with what it is where that can be told."""
    return ModelError(f"{path}: expected {expected}, but {_what_it_is(path) or _one_line(error)}")


def _what_it_is(path: Path) -> str:
    try:
        if path.is_dir():
            return "it is a directory"
        with path.open("rb") as file:
            begin = file.read(512)
    except OSError as error:
        return f"it cannot be read ({error.strerror or error})"
    if not begin:
        return "the file is empty"
    if begin.startswith(LFS_POINTER):
        return "it is a Git LFS pointer, which stands for a file that was not downloaded: run git lfs pull"
    if begin.lstrip()[:5].lower() in (b"<html", b"<!doc"):
        return "it is a web page: the download went wrong"
    return ""


def _one_line(error: Exception) -> str:
    return f"it is damaged or cut short ({' '.join(str(error).split())[:200] or type(error).__name__})"
