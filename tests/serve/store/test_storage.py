from __future__ import annotations

import sqlite3
import time
from pathlib import Path

import pytest

from pybatch.serve.settings import ServerSettings
from pybatch.serve.store import Batch, Storage, StoredFile, open_storage


def keep(storage: Storage, content: bytes, expires_after: int | None = None) -> StoredFile:
    upload = storage.files.upload()
    upload.write(content)
    file = storage.files.keep(upload, purpose="batch", filename="in.jsonl", expires_after=expires_after)
    upload.close()
    return file


def batch(id: str, **changes: object) -> Batch:
    fields = {"door": "openai", "status": "validating", "created_at": 1, "expires_at": 2, "format": "rows"}
    return Batch(**{"id": id, "filename": "in.jsonl", **fields, **changes})  # type: ignore[arg-type]


def test_a_folder_is_one_server_s(tmp_path: Path) -> None:
    told = "another server has this folder; --data-dir gives this one its own"
    with Storage(tmp_path / "a" / "b"), pytest.raises(BlockingIOError, match=told):
        Storage(tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b").stat().st_mode & 0o777 == 0o700
    Storage(tmp_path / "a" / "b").close()


def test_a_folder_of_another_version_is_refused(tmp_path: Path) -> None:
    Storage(tmp_path).close()
    with sqlite3.connect(tmp_path / "server.sqlite3") as database:
        database.execute("PRAGMA user_version = 99")
    database.close()
    with pytest.raises(ValueError, match="was written by another version of pybatch"):
        Storage(tmp_path)
    (tmp_path / "server.sqlite3").write_text("no database" * 100)
    with pytest.raises(OSError, match="file is not a database"):
        Storage(tmp_path)


def test_what_was_kept_is_there_after_a_restart_and_what_was_not_is_gone(tmp_path: Path) -> None:
    with Storage(tmp_path) as storage:
        file = keep(storage, b"content")
        upload = storage.files.upload()
        upload.write(b"half")
        kept = batch("batch_1", metadata={"a": "b"}, mapping={"params": {"n": 2}})
        storage.batches.add(kept, storage.files.path(file))
        (tmp_path / "batches" / "batch_2").mkdir()
    with Storage(tmp_path) as storage:
        assert storage.files.get(file.id) == file
        assert storage.files.path(file).read_bytes() == b"content"
        assert storage.batches.get("batch_1") == kept
        assert [path.name for path in (tmp_path / "files").iterdir()] == [file.id]
        assert [path.name for path in (tmp_path / "batches").iterdir()] == ["batch_1"]
        storage.files.delete(file)
        assert storage.batches.input("batch_1").read_bytes() == b"content"


def test_a_file_that_has_expired_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Storage(tmp_path) as storage:
        file = keep(storage, b"content", expires_after=3600)
        storage.files.remove_expired()
        assert storage.files.get(file.id) == file
        later = time.time() + 3601
        monkeypatch.setattr("time.time", lambda: later)
        assert storage.files.get(file.id) is None
        assert storage.files.path(file).exists()
        storage.files.remove_expired()
        assert not storage.files.path(file).exists()


def test_a_status_changes_only_from_those_that_it_may_change_from(tmp_path: Path) -> None:
    with Storage(tmp_path) as storage:
        storage.batches.add(batch("a"), [b"x\n"])
        assert storage.batches.move("a", ["validating"], "in_progress", total=3)
        assert not storage.batches.move("a", ["validating"], "failed", errors=[{"code": "x"}])
        assert not storage.batches.move("none", ["validating"], "failed")
        now = storage.batches.get("a")
        assert now is not None
        assert (now.status, now.total, now.failed_at, now.errors) == ("in_progress", 3, None, None)
        assert now.in_progress_at is not None
        assert storage.batches.input("a").read_bytes() == b"x\n"


def test_the_oldest_comes_first(tmp_path: Path) -> None:
    with Storage(tmp_path) as storage:
        for id in "cab":
            storage.batches.add(batch(id, expires_at=ord(id)), [])
        found = [storage.batches.oldest(["validating"], besides) for besides in ((), "c", "ca", "cab")]
        assert [each and each.id for each in found] == ["c", "a", "b", None]
        due = storage.batches.oldest(["validating"], due_at=ord("a"))
        assert due is not None
        assert due.id == "a"


def test_a_server_s_folder_belongs_to_its_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    for settings, folder in (
        (ServerSettings(port=8001), tmp_path / "pybatch" / "server-8001"),
        (ServerSettings(uds="/run/my.sock"), tmp_path / "pybatch" / "server-my.sock"),
        (ServerSettings(port=8001, data_dir=tmp_path / "own"), tmp_path / "own"),
    ):
        with open_storage(settings) as storage:
            assert storage.folder == folder
        assert folder.is_dir()
    with open_storage(ServerSettings(port=0)) as storage:
        temporary = storage.folder
        assert temporary.is_dir()
    assert not temporary.exists()
