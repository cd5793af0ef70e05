"""Answers to requests that were made before, on disk, for this job or for later ones."""

from __future__ import annotations

import logging
import sqlite3
import time
import zlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from pybatch.api.outcomes import Answer

logger = logging.getLogger(__name__)

FILE_NAME = "answers-1.sqlite"  # the number is of the layout: a program with another has a file of its own
COMMIT_INTERVAL = 0.05  # seconds after which an answer is in the file, where other processes find it
COMMIT_BYTES = 1 << 20  # of answers, at which they are written earlier
BUSY_TIMEOUT = 5.0  # seconds to wait for another process's transaction, which takes milliseconds
USE_INTERVAL = 3600  # seconds between two notes that an answer is in use
TEMPORARY_BYTES = 256 << 20  # the most of a temporary file's
BATCH_IN_USE = 1000  # notes of use that are kept in memory

_SCHEMA = """
CREATE TABLE IF NOT EXISTS answers (
    key BLOB NOT NULL UNIQUE, used INTEGER NOT NULL, job TEXT NOT NULL, place INTEGER NOT NULL,
    checksum INTEGER NOT NULL, answer BLOB NOT NULL);
CREATE INDEX IF NOT EXISTS answers_by_use ON answers (used);
"""

Entry = tuple[int, str, int, int, bytes]
"""Seconds since the epoch when last used, job, row, checksum, answer as JSON."""
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Cached:
    """An answer, and the job and row that it was computed for."""

    answer: Answer
    job: str
    row: int


class ResponseCache:
    """Answers by the keys of CacheKeys, in an SQLite database. For one thread at a time, and any number of processes.

    folder: where the database is kept; None: in a temporary file that goes with the object, for one job. max_bytes: of
    the database; those that have not been used for longest go first. An answer is in memory until it is written, within
    COMMIT_INTERVAL as long as the cache is used, else by flush() or close().

    Losing a cache costs time only. So nothing here raises for what becomes of the database: one that is damaged, locked
    or full is told once, in a warning of this module's logger, and is not used from then on.
    """

    def __init__(self, folder: Path | None, *, max_bytes: int = 1 << 30) -> None:
        self._max_bytes = max_bytes if folder is not None else min(max_bytes, TEMPORARY_BYTES)
        self._name = "the temporary cache" if folder is None else str(folder / FILE_NAME)
        self._database: sqlite3.Connection | None = None
        self._pending: dict[bytes, Entry] = {}
        self._pending_bytes = 0
        self._in_use: set[bytes] = set()  # keys whose time of use is to be noted
        self._due = 0.0
        self._try(lambda: self._open(folder))

    def get(self, key: bytes) -> Cached | None:
        entry = self._pending.get(key)
        if entry is None and self._database is not None:
            entry = self._try(lambda: self._read(key))
        if entry is None:
            return None
        used, job, row, checksum, text = entry
        if time.time() - used > USE_INTERVAL:
            self._in_use.add(key)
            if len(self._in_use) >= BATCH_IN_USE:
                self.flush()
        try:
            if checksum == _checksum(key, text):
                return Cached(Answer.from_json(text), job, row)
        except (ValueError, TypeError, KeyError):  # of another version
            pass
        return None

    def put(self, key: bytes, job: str, row: int, answer: Answer) -> None:
        if self._database is None:
            return
        text = answer.to_json()
        if len(text) <= self._max_bytes // 8:
            self._pending[key] = int(time.time()), job, row, _checksum(key, text), text
            self._pending_bytes += len(text)
        now = time.monotonic()
        if self._pending_bytes >= COMMIT_BYTES or now >= self._due:
            self.flush()
            self._due = now + COMMIT_INTERVAL

    def flush(self) -> None:
        """Writes what is in memory."""
        if self._pending or self._in_use:
            self._try(self._write)
            self._pending.clear()
            self._pending_bytes = 0
            self._in_use.clear()

    def close(self) -> None:
        self.flush()
        database, self._database = self._database, None
        if database is not None:
            database.close()

    def _open(self, folder: Path | None) -> None:
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
        self._database = database = sqlite3.connect(
            "" if folder is None else folder / FILE_NAME,
            timeout=BUSY_TIMEOUT,
            isolation_level=None,
            check_same_thread=False,
        )
        database.executescript(
            "PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF;"
            if folder is None
            else "PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL; PRAGMA journal_size_limit = 4194304;"
        )
        database.executescript(_SCHEMA)

    def _read(self, key: bytes) -> Entry | None:
        assert self._database is not None
        rows = self._database.execute("SELECT used, job, place, checksum, answer FROM answers WHERE key = ?", (key,))
        entry: Entry | None = rows.fetchone()
        return entry

    def _write(self) -> None:
        database, now = self._database, int(time.time())
        assert database is not None
        with database:
            database.execute("BEGIN IMMEDIATE")
            database.executemany(
                "INSERT OR REPLACE INTO answers (key, used, job, place, checksum, answer) VALUES (?, ?, ?, ?, ?, ?)",
                [(key, *entry) for key, entry in self._pending.items()],
            )
            database.executemany("UPDATE answers SET used = ? WHERE key = ?", [(now, key) for key in self._in_use])
            self._evict(database)

    def _evict(self, database: sqlite3.Connection) -> None:
        """Deletes until there is room. Their pages are used again, so the file does not grow beyond its bound."""
        (page_size,), (pages,), (free,) = (
            database.execute(f"PRAGMA {name}").fetchone() for name in ("page_size", "page_count", "freelist_count")
        )
        missing = (pages - free) * page_size - self._max_bytes
        if missing <= 0:
            return
        oldest = database.execute("SELECT rowid, length(answer) FROM answers ORDER BY used, rowid")
        deleted = []
        for rowid, size in oldest:
            deleted.append((rowid,))
            missing -= size
            if missing <= 0:
                break
        database.executemany("DELETE FROM answers WHERE rowid = ?", deleted)

    def _try(self, action: Callable[[], R]) -> R | None:
        try:
            return action()
        except (sqlite3.Error, OSError) as error:
            reason = (isinstance(error, OSError) and error.strerror) or error  # without the path, which comes first
            logger.warning("%s: %s: answers are not taken from it, nor kept, from here on", self._name, reason)
            if self._database is not None:
                with suppress(sqlite3.Error):
                    self._database.close()
            self._database = None
            return None


def _checksum(key: bytes, text: bytes) -> int:
    return zlib.crc32(text, zlib.crc32(key))
