"""The files that clients upload, and those that batches write for them."""

from __future__ import annotations

import os
import time
import uuid
from contextlib import suppress
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from sqlite3 import Connection
from typing import BinaryIO

from pybatch.jobs.disk.publishing import sync_folder
from pybatch.serve.store.database import Database
from pybatch.serve.store.pages import Cut, Page, page


@dataclass(frozen=True)
class StoredFile:
    """bytes: its size. created_at, expires_at: in seconds since 1970. path: in the server's folder."""

    id: str
    purpose: str
    filename: str
    bytes: int
    created_at: int
    expires_at: int | None
    path: str


COLUMNS = ", ".join(field.name for field in fields(StoredFile))
PLACES = ", ".join("?" for _ in fields(StoredFile))


def new_file_id() -> str:
    return f"file-{uuid.uuid4().hex}"


class FileStore:
    """Files in a folder, known by the database. An expired file is no longer there, even before it is removed."""

    def __init__(self, database: Database, folder: Path) -> None:
        self._database, self.folder = database, folder
        self._own = folder / "files"
        self._own.mkdir(exist_ok=True)

    def upload(self) -> Upload:
        """A new file, to be written."""
        return Upload(self._own / f"{uuid.uuid4().hex}.part")

    def keep(self, upload: Upload, *, purpose: str, filename: str, expires_after: int | None) -> StoredFile:
        """What was uploaded, as a file that survives a power failure. expires_after: in seconds."""
        now, id = int(time.time()), new_file_id()
        size = upload.finish()
        expires_at = None if expires_after is None else now + expires_after
        file = StoredFile(id, purpose, filename, size, now, expires_at, f"files/{id}")
        os.rename(upload.path, self.folder / file.path)
        sync_folder(str(self._own))
        try:
            with self._database.transaction() as transaction:
                add_file(transaction, file)
        except OSError:
            self._unlink(file)
            raise
        return file

    def get(self, id: str) -> StoredFile | None:
        found = self._database.rows(f"SELECT {COLUMNS} FROM files WHERE id = ? AND {alive()}", [id])
        return StoredFile(*found[0]) if found else None

    def page(self, cut: Cut, purpose: str | None = None) -> Page[StoredFile]:
        """Raises NotFoundError if there is no file of the ids."""
        found = page(self._database, "files", {} if purpose is None else {"purpose": purpose}, cut, alive())
        items = [StoredFile(**{name: row[name] for name in StoredFile.__dataclass_fields__}) for row in found.items]
        return Page(items, found.has_more)

    def path(self, file: StoredFile) -> Path:
        return self.folder / file.path

    def delete(self, file: StoredFile) -> bool:
        """Returns whether it was still there."""
        with self._database.transaction() as transaction:
            deleted = transaction.execute("DELETE FROM files WHERE id = ?", [file.id]).rowcount
        self._unlink(file)
        return deleted > 0

    def remove_expired(self) -> None:
        for row in self._database.rows(f"SELECT {COLUMNS} FROM files WHERE NOT {alive()}"):
            self.delete(StoredFile(*row))

    def sweep(self) -> None:
        """Removes what a kill has left without a row in the database."""
        known = {row["path"] for row in self._database.rows("SELECT path FROM files")}
        for path in self._own.iterdir():
            if f"files/{path.name}" not in known:
                path.unlink()

    def _unlink(self, file: StoredFile) -> None:
        with suppress(FileNotFoundError):
            self.path(file).unlink()


def add_file(transaction: Connection, file: StoredFile) -> None:
    transaction.execute(f"INSERT INTO files ({COLUMNS}) VALUES ({PLACES})", astuple(file))


def alive() -> str:
    """The condition that a file has not expired."""
    return f"(expires_at IS NULL OR expires_at > {time.time():.0f})"


class Upload:
    """The bytes of a file under way."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: BinaryIO = path.open("xb")

    def write(self, data: bytes) -> None:
        """Raises OSError if the disk does not take it."""
        self._file.write(data)

    def finish(self) -> int:
        """Forces it to the disk, and returns its size."""
        self._file.flush()
        os.fsync(self._file.fileno())
        return self._file.tell()

    def close(self) -> None:
        """Removes them unless they have been kept."""
        with suppress(OSError):  # what could not be written is not wanted
            self._file.close()
        with suppress(FileNotFoundError):
            self.path.unlink()
