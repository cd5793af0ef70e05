"""What a job has done so far, on disk, so that a job that was killed goes on where it was."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import secrets
import threading
from array import array
from collections.abc import Iterable, Iterator
from contextlib import suppress
from hashlib import blake2b
from typing import Any, BinaryIO

from pybatch.jobs.disk.line_file import LineFile
from pybatch.jobs.disk.publishing import SECOND, publish, sync_folder
from pybatch.jobs.record import Record, checked, with_checksum

LAYOUT = 1  # of the lines; to be raised when they change
SYNC_INTERVAL = 1.0  # seconds of work that a power failure may cost


def digest_of_rows(digests: Iterable[int]) -> str:
    """Of the digests of all rows in their order."""
    total = blake2b(digest_size=16)
    for digest in digests:
        total.update(digest.to_bytes(8, "little"))
    return total.hexdigest()


def new_tag() -> int:
    """Nanoseconds, of which some file systems (NTFS, SMB) keep hundreds."""
    least, most = SECOND // 1000, SECOND // 100
    return 100 * (least + secrets.randbelow(most - least))


class JournalMismatchError(ValueError):
    """The journal is not this job's."""


class Journal:
    """An append-only log of lines, each with a CRC-32: first the job's header, then records of rows, the last one of a
    row counting, and notes (JSON objects), the last of each name counting.

    A line is handed to the operating system as its row finishes and so survives the process (SIGKILL); a thread forces
    the file to the disk once a second, so that a power failure costs the rows of the last second. Lines that are not
    whole are skipped, and cut off at the end of the file: their rows run again. One process at a time has it open.
    In memory it takes 17 bytes a row.
    """

    header: dict[str, Any]
    notes: dict[str, Any]

    def __init__(self, file: LineFile) -> None:
        self._file = file
        self.keeps_records = False  # when the job is done
        self._forget()
        self._dirty, self._closed = threading.Event(), threading.Event()
        self._sync_error: OSError | None = None
        self._load()
        self._syncer = threading.Thread(target=self._sync_now_and_then, name="journal", daemon=True)
        self._syncer.start()

    @classmethod
    def open(cls, path: str) -> Journal:
        """Opens the journal at the path, or creates it. Raises OSError if it cannot be written, BlockingIOError if
        it is open already, and JournalMismatchError if the file is something else."""
        while True:
            fd = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if is_at(fd, path):  # not removed by the process that had the lock before
                    return cls(LineFile(path, fd))
            except BlockingIOError:
                os.close(fd)
                raise BlockingIOError(errno.EWOULDBLOCK, "another run of this job is under way", path) from None
            except BaseException:
                os.close(fd)
                raise
            os.close(fd)

    @property
    def name(self) -> str:
        return self._file.name

    def begin(self, header: dict[str, Any]) -> None:
        """Starts an empty journal over with this header."""
        os.ftruncate(self._file.fileno(), 0)
        self._forget()
        self.header = header | {"layout": LAYOUT, "tag": new_tag()}
        self._write(with_checksum(json.dumps(self.header).encode()))
        os.fsync(self._file.fileno())
        if os.path.exists(self.name):  # it may have been created just now
            sync_folder(os.path.dirname(os.path.realpath(self.name)))

    @property
    def end(self) -> int:
        """One more than the number of the last row that has a record."""
        return next((index + 1 for index in reversed(range(len(self._offsets))) if index in self), 0)

    @property
    def job_id(self) -> str:
        """The same for all runs of the job."""
        return f"{self.header.get('started')} {self.tag}"

    @property
    def tag(self) -> int | None:
        """The header's number for the files of this job, by which they are known again."""
        return self.header.get("tag")

    def finish(self) -> None:
        """Notes that every row is done, and shrinks."""
        self.note(finished=True, rows=self.done, failed=self.failed, content=self._content())
        self.shrink()

    def shrink(self) -> None:
        """If no row of a finished job has failed the records are no longer needed: only the header and the notes stay,
        so that the same job is known to be done. Where the disk does not allow it the journal stays as it is."""
        if self.done and not (self.failed or self.keeps_records):
            note = with_checksum(json.dumps({"note": self.notes}).encode())

            def write(file: BinaryIO) -> None:
                file.write(with_checksum(json.dumps(self.header).encode()) + note)

            with suppress(OSError):
                publish(self.name, write, replace=True, tag=0)

    def _content(self) -> str | None:
        """Of a stream's rows, whose records have digests."""
        end = self.end
        if not (end and self[end - 1].digest):
            return None
        return digest_of_rows(record.digest for record in self)

    def forget_failed(self) -> None:
        """Drops the records of rows that have failed: they are to run again, in this run or a later one."""
        self.note(forget_failed=True, finished=False)
        self._drop_failed()

    def append(self, record: Record) -> None:
        """Raises OSError, with the journal's name, if the record cannot be written."""
        line = record.to_line()
        offset = self._end
        self._write(line)
        self._enter(record.index, record.failed, offset, len(line))

    def note(self, **values: Any) -> None:
        """Writes notes, and waits until they are on the disk."""
        self._write(with_checksum(json.dumps({"note": values}).encode()))
        self.notes |= values
        os.fsync(self._file.fileno())

    def __contains__(self, index: int) -> bool:
        return index < len(self._offsets) and self._offsets[index] >= 0

    def has_failed(self, index: int) -> bool:
        return index in self and self._failed[index] == 1

    def __getitem__(self, index: int) -> Record:
        """Raises KeyError for a row without a record."""
        if index not in self:
            raise KeyError(index)
        return Record.from_text(os.pread(self._file.fileno(), self._sizes[index], self._offsets[index])[9:-1])

    def __iter__(self) -> Iterator[Record]:
        """The records in the order of the rows."""
        return self.following(0)

    def following(self, index: int) -> Iterator[Record]:
        """The records from this row on, in the order of the rows."""
        for each in range(index, len(self._offsets)):
            if each in self:
                yield self[each]

    def as_finished(self) -> Iterator[Record]:
        """The records in the order in which they were written."""
        for offset, text in self._lines():
            if text is not None and not text.startswith(b"{"):
                record = Record.from_text(text)
                if self._offsets[record.index] == offset:
                    yield record

    def remove(self) -> None:
        os.unlink(self.name)

    def close(self) -> None:
        """Raises OSError if what was written cannot be forced to the disk."""
        self._closed.set()
        self._dirty.set()
        self._syncer.join()
        try:
            if self._sync_error is not None:
                raise self._sync_error
        finally:
            self._file.close()

    def _write(self, line: bytes) -> None:
        if self._sync_error is not None:
            raise self._sync_error
        self._file.append(line)
        self._end += len(line)
        self._dirty.set()

    def _forget(self) -> None:
        self._offsets, self._sizes = array("q"), array("q")  # by row; -1 for one without a record
        self._failed = bytearray()
        self.header, self.notes = {}, {}
        self.done = self.failed = self._end = 0

    def _enter(self, index: int, failed: bool, offset: int, size: int) -> None:
        missing = index + 1 - len(self._offsets)
        if missing > 0:
            self._offsets.extend([-1] * missing)
            self._sizes.extend([0] * missing)
            self._failed.extend(bytes(missing))
        if self._offsets[index] >= 0:
            self.done -= 1
            self.failed -= self._failed[index]
        self._offsets[index], self._sizes[index], self._failed[index] = offset, size, failed
        self.done += 1
        self.failed += failed

    def _drop_failed(self) -> None:
        for index, failed in enumerate(self._failed):
            if failed:
                self._offsets[index], self._failed[index] = -1, 0
        self.done -= self.failed
        self.failed = 0

    def _lines(self) -> Iterator[tuple[int, bytes | None]]:
        offset = 0
        with open(os.dup(self._file.fileno()), "rb") as file:
            file.seek(0)
            for line in file:
                yield offset, checked(line)
                offset += len(line)

    def _load(self) -> None:
        lines = self._lines()
        whole = 0
        for offset, text in lines:
            if text is None:
                if offset == 0 and os.fstat(self._file.fileno()).st_size > 0 and not self._is_torn_header():
                    raise JournalMismatchError(f"{self.name} is not a journal of pybatch")
                continue
            whole = offset + len(text) + 10
            try:
                self._replay(offset, text)
            except (ValueError, TypeError, LookupError):
                raise JournalMismatchError(
                    f"{self.name} was written by another version of pybatch; move it away to start over"
                ) from None
        os.ftruncate(self._file.fileno(), whole)
        self._end = whole

    def _replay(self, offset: int, text: bytes) -> None:
        """A line, without its checksum. Raises ValueError, TypeError or LookupError if its layout is another one."""
        if not text.startswith(b"{"):
            record = Record.from_text(text)
            self._enter(record.index, record.failed, offset, len(text) + 10)
        elif offset == 0:
            self.header = json.loads(text)
            if self.header["layout"] != LAYOUT:
                raise ValueError
        else:
            note = json.loads(text)["note"]
            self.notes |= note
            if note.get("forget_failed"):
                self._drop_failed()

    def _is_torn_header(self) -> bool:
        first = os.pread(self._file.fileno(), 1 << 16, 0)
        return b"\n" not in first and first[8:10] in (b"", b" ", b" {")

    def _sync_now_and_then(self) -> None:
        """On a thread of its own, since the disk may take its time."""
        while self._sync_error is None:
            self._dirty.wait()
            closed = self._closed.is_set()
            self._dirty.clear()
            try:
                os.fdatasync(self._file.fileno())
            except OSError as error:
                error.filename = self.name
                self._sync_error = error if error.errno not in (errno.EINVAL, errno.ENOTSUP) else None
            if closed:
                return
            self._closed.wait(SYNC_INTERVAL)


def is_at(fd: int, path: str) -> bool:
    """Whether the path leads to the open file."""
    try:
        return os.path.samestat(os.fstat(fd), os.stat(path))
    except FileNotFoundError:
        return False
