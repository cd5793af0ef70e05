from __future__ import annotations

import logging
import os
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pybatch.api.outcomes import Answer, Sample
from pybatch.jobs.answers import cache as cache_module
from pybatch.jobs.answers.cache import FILE_NAME, Cached, ResponseCache

ANSWER = Answer(3, (Sample("né \ud800 \0", 4, "stop", "END", [[{"token_id": 1, "logprob": -0.5}], None]),), [None])


def answer(text: str) -> Answer:
    return Answer(1, (Sample(text, 1, "stop"),))


def key(number: int) -> bytes:
    return number.to_bytes(16, "little")


def test_an_answer_is_found_again_with_its_job_and_row(tmp_path: Path) -> None:
    for folder in (None, tmp_path / "new" / "folder"):
        cache = ResponseCache(folder)
        assert cache.get(key(1)) is None
        cache.put(key(1), "job", 7, ANSWER)
        assert cache.get(key(1)) == Cached(ANSWER, "job", 7)
        cache.flush()
        assert cache.get(key(1)) == Cached(ANSWER, "job", 7)
        cache.close()
        assert cache.get(key(1)) is None
        cache.put(key(1), "job", 7, ANSWER)
    again = ResponseCache(tmp_path / "new" / "folder")
    assert again.get(key(1)) == Cached(ANSWER, "job", 7)
    again.close()


def test_answers_are_written_as_time_goes_by_and_others_see_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr(cache_module, "time", SimpleNamespace(time=time.time, monotonic=lambda: now))
    cache, other = ResponseCache(tmp_path), ResponseCache(tmp_path)
    cache.put(key(1), "job", 1, ANSWER)
    assert other.get(key(1)) is not None
    cache.put(key(2), "job", 2, ANSWER)
    assert other.get(key(2)) is None, "a transaction for each row"
    now = cache_module.COMMIT_INTERVAL
    cache.put(key(3), "job", 3, ANSWER)
    assert other.get(key(2)) is not None
    cache.close()
    other.close()


def size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())


def test_what_was_used_longest_ago_goes_first_and_the_file_stays_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache_module, "COMMIT_BYTES", 1 << 15)
    now = time.time()
    cache = ResponseCache(tmp_path, max_bytes=1 << 19)
    large = answer("x" * 2000)
    for i in range(2000):
        monkeypatch.setattr(cache_module.time, "time", lambda i=i: now + 100 * i)
        cache.put(key(i), "job", i, large)
        if i % 10 == 0:
            assert cache.get(key(0)) is not None, "it is in use"
    cache.close()
    assert size(tmp_path) < 2 * (1 << 19)
    again = ResponseCache(tmp_path, max_bytes=1 << 19)
    kept = [i for i in range(2000) if again.get(key(i)) is not None]
    assert len(kept) > 100
    assert kept[0] == 0
    assert kept[1:] == list(range(kept[1], 2000))
    again.put(key(5000), "job", 0, answer("x" * (1 << 19)))
    assert again.get(key(5000)) is None, "larger than its share"
    again.close()


def damage_header(path: Path) -> None:
    path.write_bytes(b"no database at all" * 1000)


def damage_pages(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(os.urandom(path.stat().st_size - 4096))


def make_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def make_other_table(path: Path) -> None:
    path.unlink()
    with sqlite3.connect(path) as database:
        database.execute("CREATE TABLE answers (something)")


@pytest.mark.parametrize("spoil", [damage_header, damage_pages, make_folder, make_other_table])
def test_a_spoilt_database_is_told_once_and_left_aside(
    spoil: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache = ResponseCache(tmp_path)
    for i in range(100):
        cache.put(key(i), "job", i, ANSWER)
    cache.close()
    spoil(tmp_path / FILE_NAME)
    with caplog.at_level(logging.WARNING):
        cache = ResponseCache(tmp_path)
        for i in range(200):
            cache.get(key(i))
            cache.put(key(i), "job", i, ANSWER)
            cache.flush()
        cache.close()
    assert len(caplog.records) == 1
    assert str(tmp_path / FILE_NAME) in caplog.text


def test_a_locked_database_and_a_file_in_the_folders_place(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache_module, "BUSY_TIMEOUT", 0.05)
    cache = ResponseCache(tmp_path)
    with sqlite3.connect(tmp_path / FILE_NAME) as other:
        other.execute("BEGIN EXCLUSIVE")
        for i in range(10):
            cache.put(key(i), "job", i, ANSWER)
            cache.flush()
    cache.close()
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    (tmp_path / "file").touch()
    ResponseCache(tmp_path / "file").put(key(1), "job", 1, ANSWER)
    assert len(caplog.records) == 2
    assert caplog.text.count(str(tmp_path / "file")) == 1


def test_an_entry_with_a_flipped_bit_is_as_good_as_none(tmp_path: Path) -> None:
    cache = ResponseCache(tmp_path)
    cache.put(key(1), "job", 1, answer("right"))
    cache.close()
    with sqlite3.connect(tmp_path / FILE_NAME) as database:
        database.execute("UPDATE answers SET answer = CAST(replace(answer, 'right', 'wrong') AS BLOB)")
    cache = ResponseCache(tmp_path)
    assert cache.get(key(1)) is None
    cache.put(key(1), "job", 2, answer("right"))
    cache.flush()
    assert cache.get(key(1)) == Cached(answer("right"), "job", 2)
    cache.close()


MANY = """
import sys
from pathlib import Path
from types import SimpleNamespace
from pybatch.api.outcomes import Answer, Sample
from pybatch.jobs.answers.cache import ResponseCache
number = int(sys.argv[2])
cache = ResponseCache(Path(sys.argv[1]))
for i in range(300):
    key = (1000 * (i % 2 * number) + i).to_bytes(16, "little")  # half of them are everybody's
    found = cache.get(key)
    assert found is None or found.answer.samples[0].text == f"{i}"
    cache.put(key, str(number), i, Answer(1, (Sample(f"{i}", 1, "stop"),)))
    cache.flush()
cache.close()
"""


def test_processes_share_a_folder(tmp_path: Path) -> None:
    command = [sys.executable, "-c", MANY, str(tmp_path / "shared")]
    processes = [subprocess.Popen([*command, str(number)], stderr=subprocess.PIPE, text=True) for number in range(1, 4)]
    for process in processes:
        _, errors = process.communicate(timeout=120)
        assert (process.returncode, errors) == (0, "")
    cache = ResponseCache(tmp_path / "shared")
    for number in range(1, 4):
        for i in range(300):
            assert cache.get(key(1000 * (i % 2 * number) + i)) is not None
    cache.close()
