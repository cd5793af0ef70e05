"""The rows of a file."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

from pybatch.jobs.rows import Row
from pybatch.jobs.sources.byte_file import ByteFile
from pybatch.jobs.sources.lines import read_lines


class FileSource:
    """A Source of the rows of a file or stream."""

    typed = False

    def __init__(self, file: ByteFile, format: str) -> None:
        self._file, self._format = file, format
        self.name = file.name
        self.rereadable = file.rereadable

    def rows(self) -> Iterator[Row]:
        with self._file.open() as file:
            yield from read_lines(file, self._format)

    def digest(self) -> str | None:
        if not self.rereadable:
            return None
        with self._file.open() as file:
            return hashlib.file_digest(file, hashlib.blake2b).hexdigest()
