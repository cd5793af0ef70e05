"""Files are whole or not there, and replaced rather than overwritten. (tests/engine/disk/test_block_file.py has what is
refused.)"""

from __future__ import annotations

import mmap
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pybatch.machine.own_files import is_abandoned, open_own, write_own


def test_who_writes_the_same_file_at_once_never_mixes(tmp_path: Path) -> None:
    path = tmp_path / "file"
    contents = [[bytes([i]) * 70_000, bytes([i]) * 3] for i in range(8)]

    def write_and_read(pieces: list[bytes]) -> set[int]:
        write_own(path, pieces)
        found = path.read_bytes()
        assert len(found) == 70_003
        return set(found)

    with ThreadPoolExecutor(8) as threads:
        assert all(len(found) == 1 for found in threads.map(write_and_read, contents * 5))
    assert [each.name for each in tmp_path.iterdir()] == ["file"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_map_keeps_what_was_mapped(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_own(path, [b"a" * 5000])
    with open(open_own(path), "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        write_own(path, [b"b"])
        assert mapped[:] == b"a" * 5000
    assert path.read_bytes() == b"b"


def test_a_piece_that_cannot_be_had_leaves_nothing(tmp_path: Path) -> None:
    def pieces() -> object:
        yield b"a"
        raise ValueError("no more")

    with pytest.raises(ValueError, match="no more"):
        write_own(tmp_path / "file", pieces())  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_only_old_temporary_files_are_abandoned() -> None:
    assert is_abandoned("x.tmp", 0.0, 3601.0)
    assert not is_abandoned("x.tmp", 0.0, 3599.0)
    assert not is_abandoned("x", 0.0, 3601.0)
