from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from pybatch.jobs.disk.publishing import expect_place, publish


@pytest.fixture(params=[0o022, 0o077])
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def put(path: Path, data: bytes, *, replace: bool) -> int:
    """Returns the file's permissions."""
    publish(str(path), lambda file: file.write(data) and None, replace=replace, tag=7)
    assert path.read_bytes() == data
    assert [each.name for each in path.parent.iterdir()] == [path.name]
    return stat.S_IMODE(path.stat().st_mode)


def test_a_new_file_has_the_permissions_of_others_and_a_replaced_one_its_own(tmp_path: Path, umask: int) -> None:
    path = tmp_path / "out.jsonl"
    assert put(path, b"a", replace=False) == 0o666 & ~umask
    path.chmod(0o640)
    assert put(path, b"b", replace=True) == 0o640


def test_other_threads_never_see_another_umask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "umask", lambda mask: pytest.fail("the umask is the whole process's"))
    put(tmp_path / "out.jsonl", b"a", replace=False)


def test_a_file_that_appears_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    with pytest.raises(FileExistsError) as caught:
        publish(str(path), lambda file: path.write_bytes(b"another's") and None, replace=False, tag=7)
    assert caught.value.filename == str(path)
    assert path.read_bytes() == b"another's"
    assert [each.name for each in tmp_path.iterdir()] == [path.name]


def test_what_cannot_be_written_leaves_nothing_behind(tmp_path: Path) -> None:
    def write(file: object) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left") as caught:
        publish(str(tmp_path / "out.jsonl"), write, replace=False, tag=7)
    assert caught.value.filename == str(tmp_path / "out.jsonl")
    assert list(tmp_path.iterdir()) == []


def test_a_device_is_never_replaced(tmp_path: Path) -> None:
    pipe = tmp_path / "out.jsonl"
    os.mkfifo(pipe)
    (tmp_path / "link").symlink_to(pipe)
    for path in (pipe, tmp_path / "link"):
        with pytest.raises(OSError, match="a device or a pipe, expected a file") as caught:
            expect_place(str(path))
        assert caught.value.filename == str(path)
        with pytest.raises(OSError, match="a device or a pipe, expected a file"):
            publish(str(path), lambda file: None, replace=True, tag=7)
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    assert len(list(tmp_path.iterdir())) == 2
