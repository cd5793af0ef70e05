"""Keeps the files of a folder within a size."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from pybatch.machine.own_files import is_abandoned

_NAME = re.compile(r"[0-9a-f]{32}\.kv")
_KEPT_AT_EVICTION = 7 / 8  # of the limit, so that not every file that is written deletes one
_UNSEEN = 1 / 16  # of the limit, which an engine writes before it looks again


def file_name(digest: bytes) -> str:
    return f"{digest.hex()}.kv"


class SizeLimit:
    """Deletes the files that have not been used for longest, by their times of modification.

    Engines that share the folder see what the others have written when they look, so that for a while each further one
    may exceed the limit by a sixteenth. Only files in folders below `root` whose names are those of blocks are counted.
    """

    def __init__(self, root: Path, max_bytes: int) -> None:
        self._root, self._max_bytes = root, max_bytes
        self._left = 0  # to write before looking again

    def make_room(self, size: int) -> bool:
        """For a file of so many bytes. Returns whether one may be written."""
        if size > self._max_bytes:
            return False
        if self._left < size:
            total = self._evict(size)
            self._left = max(size, min(self._max_bytes - total, int(self._max_bytes * _UNSEEN)))
        self._left -= size
        return True

    def _evict(self, size: int) -> int:
        """Makes room for so many bytes if there is none. Returns how many are left."""
        files = sorted(self._files())
        total = sum(size for _, size, _ in files)
        if total + size > self._max_bytes:
            for _, freed, path in files:
                if total + size <= self._max_bytes * _KEPT_AT_EVICTION:
                    break
                with suppress(FileNotFoundError):  # another engine has
                    os.unlink(path)
                total -= freed
        return total

    def _files(self) -> Iterator[tuple[int, int, str]]:
        """When each was last used, its size and its path."""
        for folder in _entries(self._root):
            if not folder.is_dir(follow_symlinks=False):
                continue
            for file in _entries(folder.path):
                with suppress(FileNotFoundError):
                    about = file.stat(follow_symlinks=False)
                    if _NAME.fullmatch(file.name):
                        yield about.st_mtime_ns, about.st_size, file.path
                    elif is_abandoned(file.name, about.st_mtime, time.time()):
                        os.unlink(file.path)


def _entries(folder: str | Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except (FileNotFoundError, PermissionError):
        return []
