"""What is known of batches."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from sqlite3 import Connection, Row
from typing import Any, Literal

from pybatch.jobs.disk.publishing import sync_folder
from pybatch.serve.store.database import Database
from pybatch.serve.store.files import StoredFile, add_file
from pybatch.serve.store.pages import Cut, Page, page

Door = Literal["openai", "anthropic"]
Status = Literal["validating", "failed", "in_progress", "finalizing", "completed", "expired", "cancelling", "cancelled"]
Ending = Literal["cancelled", "expired"]

STATUSES: tuple[Status, ...] = (
    "validating", "failed", "in_progress", "finalizing", "completed", "expired", "cancelling", "cancelled",
)  # fmt: skip
UNDER_WAY: tuple[Status, ...] = ("in_progress", "finalizing", "cancelling")
ENDED: tuple[Status, ...] = ("completed", "failed", "expired", "cancelled")
JSON_COLUMNS = ("metadata", "mapping", "errors")


@dataclass(frozen=True)
class Batch:
    """A batch as it was when it was read from the database.

    door: the protocol that it came by, in which it is told of. format: of its rows (RowOptions.format). filename: what
    the client calls its input, whose ending tells the input's format. mapping: how other rows become prompts, as it was
    given. output_seconds: how long its files are kept. total, completed, failed: rows; those of neither kind wait, or
    have been cancelled or have expired. ending: why no further rows run, once what was done has been counted. errors:
    OpenAI's, of a batch that failed. The rest is OpenAI's. Times are in seconds since 1970.
    """

    id: str
    door: Door
    status: Status
    created_at: int
    expires_at: int
    format: str
    filename: str
    total: int = 0
    completed: int = 0
    failed: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    input_file_id: str | None = None
    endpoint: str | None = None
    completion_window: str | None = None
    metadata: dict[str, str] | None = None
    mapping: dict[str, Any] | None = None
    output_seconds: int | None = None
    model: str | None = None
    ending: Ending | None = None
    errors: list[dict[str, Any]] | None = None
    output_file_id: str | None = None
    error_file_id: str | None = None
    in_progress_at: int | None = None
    finalizing_at: int | None = None
    completed_at: int | None = None
    failed_at: int | None = None
    expired_at: int | None = None
    cancelling_at: int | None = None
    cancelled_at: int | None = None

    @property
    def ended(self) -> bool:
        return self.status in ENDED

    @property
    def ended_at(self) -> int | None:
        return next((at for status in ENDED if (at := getattr(self, f"{status}_at")) is not None), None)


NAMES = [field.name for field in fields(Batch)]


class BatchStore:
    """Batches in the database. Each has a folder of its own with its input and what it writes."""

    def __init__(self, database: Database, folder: Path) -> None:
        self._database, self._folder = database, folder
        self._own = folder / "batches"
        self._own.mkdir(exist_ok=True)

    def folder(self, id: str) -> Path:
        return self._own / id

    def input(self, id: str) -> Path:
        return self.folder(id) / "input"

    def output(self, id: str, ending: str) -> Path:
        """ending: of the format that its results have, such as ".jsonl"."""
        return self.folder(id) / f"output{ending}"

    def errors(self, id: str) -> Path:
        return self.folder(id) / "errors.jsonl"

    def add(self, batch: Batch, rows: Path | Iterable[bytes]) -> None:
        """rows: a file, which stays where it is but may be deleted, or lines. Raises OSError if they cannot be kept."""
        folder = self.folder(batch.id)
        folder.mkdir()
        try:
            if isinstance(rows, Path):
                link(rows, self.input(batch.id))
            else:
                write(rows, self.input(batch.id))
            sync_folder(str(folder))
            sync_folder(str(self._own))
            with self._database.transaction() as transaction:
                places = ", ".join("?" for _ in NAMES)
                values = [as_column(name, getattr(batch, name)) for name in NAMES]
                transaction.execute(f"INSERT INTO batches ({', '.join(NAMES)}) VALUES ({places})", values)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise

    def get(self, id: str, door: Door | None = None) -> Batch | None:
        """door: that it must have come by."""
        found = self._database.rows("SELECT * FROM batches WHERE id = ? AND door = ifnull(?, door)", [id, door])
        return as_batch(found[0]) if found else None

    def page(self, door: Door, cut: Cut) -> Page[Batch]:
        """Raises NotFoundError if there is no batch of the ids."""
        found = page(self._database, "batches", {"door": door}, cut)
        return Page([as_batch(row) for row in found.items], found.has_more)

    def oldest(
        self, statuses: Sequence[Status], besides: Collection[str] = (), due_at: float | None = None
    ) -> Batch | None:
        """The oldest one with one of the statuses, of those that are not `besides`. due_at: a time at which it has
        expired."""
        condition = f"status IN ({', '.join('?' for _ in statuses)}) AND id NOT IN ({', '.join('?' for _ in besides)})"
        due = "" if due_at is None else f" AND expires_at <= {int(due_at)}"
        query = f"SELECT * FROM batches WHERE {condition}{due} ORDER BY number LIMIT 1"
        found = self._database.rows(query, [*statuses, *besides])
        return as_batch(found[0]) if found else None

    def update(self, id: str, **values: Any) -> None:
        with self._database.transaction() as transaction:
            set_values(transaction, id, values)

    def move(
        self, id: str, before: Collection[Status], to: Status, files: Sequence[StoredFile] = (), **values: Any
    ) -> bool:
        """Gives it another status, and the date of that, if it has one of those before. files: that it has written.
        Returns whether it had."""
        with self._database.transaction() as transaction:
            (status,) = transaction.execute("SELECT status FROM batches WHERE id = ?", [id]).fetchone() or (None,)
            if status not in before:
                return False
            for file in files:
                add_file(transaction, file)
            set_values(transaction, id, {"status": to, f"{to}_at": int(time.time()), **values})
        return True

    def delete(self, batch: Batch) -> None:
        with self._database.transaction() as transaction:
            transaction.execute("DELETE FROM batches WHERE id = ?", [batch.id])
        shutil.rmtree(self.folder(batch.id), ignore_errors=True)

    def by_status(self) -> dict[Status, int]:
        """How many there are of each."""
        rows = self._database.rows("SELECT status, count(*) AS batches FROM batches GROUP BY status")
        found = {row["status"]: row["batches"] for row in rows}
        return {status: found.get(status, 0) for status in STATUSES}

    def rows_of_all(self) -> tuple[int, int]:
        """Rows that have been answered, and that have failed, of all batches as far as the database knows."""
        (found,) = self._database.rows("SELECT ifnull(sum(completed), 0), ifnull(sum(failed), 0) FROM batches")
        return found[0], found[1]

    def sweep(self) -> None:
        """Removes what a kill has left without a row in the database."""
        known = {row["id"] for row in self._database.rows("SELECT id FROM batches")}
        for path in self._own.iterdir():
            if path.name not in known:
                shutil.rmtree(path)


def set_values(transaction: Connection, id: str, values: dict[str, Any]) -> None:
    columns = ", ".join(f"{name} = ?" for name in values)
    given = [as_column(name, value) for name, value in values.items()]
    transaction.execute(f"UPDATE batches SET {columns} WHERE id = ?", [*given, id])


def as_column(name: str, value: Any) -> Any:
    return json.dumps(value) if name in JSON_COLUMNS and value is not None else value


def as_batch(row: Row) -> Batch:
    values = {name: row[name] for name in NAMES}
    for name in JSON_COLUMNS:
        if values[name] is not None:
            values[name] = json.loads(values[name])
    return Batch(**values)


def link(file: Path, path: Path) -> None:
    """The same bytes under a second name: a hard link where the file system has them."""
    try:
        os.link(file, path)
    except FileNotFoundError:
        raise
    except OSError:
        shutil.copyfile(file, path)
        sync(path)


def write(lines: Iterable[bytes], path: Path) -> None:
    with path.open("xb") as file:
        file.writelines(lines)
    sync(path)


def sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
