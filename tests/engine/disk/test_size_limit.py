"""Files stay within a size, and what has not been used for longest goes first."""

from __future__ import annotations

import os
import time
from pathlib import Path

from pybatch.engine.disk.size_limit import SizeLimit, file_name


def write(folder: Path, number: int, *, size: int = 100, used: int | None = None) -> None:
    folder.mkdir(exist_ok=True)
    path = folder / file_name(number.to_bytes(16, "big"))
    path.write_bytes(bytes(size))
    when = number if used is None else used
    os.utime(path, ns=(when, when))


def numbers(folder: Path) -> list[int]:
    return sorted(int(path.stem, 16) for path in folder.glob(f"{'[0-9a-f]' * 32}.kv"))


def test_the_least_recently_used_go_first_wherever_they_are(tmp_path: Path) -> None:
    a, b = tmp_path / "a", tmp_path / "b"
    limit = SizeLimit(tmp_path, 1000)
    for number in range(10):
        assert limit.make_room(100)
        write((a, b)[number % 2], number)
    write(a, 0, used=99)
    assert limit.make_room(100)  # down to 7/8: 775 bytes with this one
    assert numbers(a) == [0, 4, 6, 8]
    assert numbers(b) == [5, 7, 9]


def test_engines_that_share_a_folder_stay_near_the_limit(tmp_path: Path) -> None:
    limits = [SizeLimit(tmp_path, 16_000) for _ in range(3)]
    most = 0
    for number in range(900):
        assert limits[number % 3].make_room(100)
        write(tmp_path / "a", number)
        if number % 10 == 0:
            most = max(most, len(numbers(tmp_path / "a")))
    assert 140 <= most <= 160 + 20


def test_it_looks_once_for_every_sixteenth(tmp_path: Path) -> None:
    limit = SizeLimit(tmp_path, 16_000)
    looks = 0
    files = limit._files

    def counted() -> object:
        nonlocal looks
        looks += 1
        return files()

    limit._files = counted  # type: ignore[method-assign, assignment]
    for number in range(100):
        limit.make_room(100)
        write(tmp_path / "a", number)
    assert looks == 10


def test_a_file_larger_than_the_limit_is_not_written_and_deletes_none(tmp_path: Path) -> None:
    write(tmp_path / "a", 1)
    assert not SizeLimit(tmp_path, 150).make_room(151)
    assert SizeLimit(tmp_path, 250).make_room(150)
    assert numbers(tmp_path / "a") == [1]
    assert SizeLimit(tmp_path, 150).make_room(150)
    assert numbers(tmp_path / "a") == []


def test_what_is_not_a_block_stays_but_for_writes_of_killed_processes(tmp_path: Path) -> None:
    write(tmp_path / "a", 1)
    kept = [tmp_path / "notes.kv", tmp_path / "a" / "notes.kv", tmp_path / "a" / "new.tmp"]
    old = tmp_path / "a" / "old.tmp"
    for path in (*kept, old):
        path.write_bytes(bytes(1000))
    (tmp_path / "loop").symlink_to(tmp_path / "a")
    for path in (kept[1], old):
        os.utime(path, (1, time.time() - 4000))
    assert SizeLimit(tmp_path, 100).make_room(100)
    assert numbers(tmp_path / "a") == []
    assert all(path.exists() for path in kept)
    assert not old.exists()


def test_a_folder_that_is_gone_is_empty(tmp_path: Path) -> None:
    assert SizeLimit(tmp_path / "gone", 100).make_room(100)
