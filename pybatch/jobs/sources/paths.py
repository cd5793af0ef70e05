"""Which files a path, a folder or a glob stands for."""

from __future__ import annotations

import glob
import os
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from pybatch.jobs.sources.byte_file import STANDARD_INPUT
from pybatch.jobs.sources.formats import format_of


def files_of(path: str, format: str | None = None) -> list[str]:
    """The files that a job reads, sorted by name.

    A path that exists stands for itself, even where it looks like a glob. A folder stands for the files in it, not in
    folders inside it, whose endings are known, or for all of them if a format is given; those that are hidden (by . or
    _) are left out. A glob stands for the files it matches, ** for folders inside folders too. Raises FileNotFoundError
    if there is none.
    """
    if path == STANDARD_INPUT or (os.path.exists(path) and not os.path.isdir(path)):
        return [path]
    if os.path.isdir(path):
        with os.scandir(path) as entries:
            found = [entry.path for entry in entries if is_input(entry, format)]
        expected = "files with known endings" if format is None else "files"
    elif glob.has_magic(path):
        found = [name for name in glob.iglob(path, recursive=True) if not os.path.isdir(name)]
        expected = "files that match"
    else:
        return [path]  # which says what is wrong with it when it is opened
    if not found:
        raise FileNotFoundError(2, f"there are no {expected}", path)
    return sorted(found)


def is_input(entry: os.DirEntry[str], format: str | None) -> bool:
    return (
        not entry.name.startswith((".", "_"))
        and entry.is_file()
        and (format is not None or format_of(entry.name) is not None)
    )


def would_read(path: str, file: str) -> bool:
    """Whether a job that reads the path, a folder or a glob, would read the file too, if there were one."""
    if path == STANDARD_INPUT or (os.path.exists(path) and not os.path.isdir(path)):
        return False
    whole = Path(os.path.realpath(file))
    if os.path.isdir(path):
        return os.path.exists(whole.parent) and os.path.samefile(whole.parent, path)
    pattern = Path(os.path.abspath(path)).parts
    fixed = next((number for number, part in enumerate(pattern) if glob.has_magic(part)), len(pattern))
    return matches(whole.parts, [*Path(os.path.realpath(Path(*pattern[:fixed]))).parts, *pattern[fixed:]])


def matches(parts: Sequence[str], pattern: Sequence[str]) -> bool:
    """Whether a path is one that a glob matches, part by part."""
    if not pattern:
        return not parts
    if pattern[0] == "**" and matches(parts, pattern[1:]):
        return True
    fits = bool(parts) and (pattern[0] == "**" or fnmatchcase(parts[0], pattern[0]))
    return fits and matches(parts[1:], pattern[pattern[0] != "**" :])
