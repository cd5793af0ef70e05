"""The rows of files."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pybatch.jobs.rows import Row
from pybatch.jobs.sources.byte_file import ByteFile
from pybatch.jobs.sources.compression import decompressed
from pybatch.jobs.sources.delimited import HeaderError, read_csv, read_tsv
from pybatch.jobs.sources.faults import unreadable
from pybatch.jobs.sources.json_array import ArrayError, begins_array, read_json_array
from pybatch.jobs.sources.lines import read_json_lines, read_text_lines
from pybatch.jobs.sources.parquet import common_schema, read_batches, read_schema

if TYPE_CHECKING:
    import pyarrow as pa

# What reads the rows of an open file: it takes what stands before a row's line in its place, and the first row's index.
LINE_READERS: dict[str, Callable[[io.BufferedReader, str, int], Iterator[Row]]] = {
    "jsonl": read_json_lines,
    "json": read_json_lines,  # where it is no array
    "text": read_text_lines,
    "csv": read_csv,
    "tsv": read_tsv,
}


@dataclass(frozen=True, slots=True)
class Part:
    """One of a source's files. place: what stands before "line 7", such as "b.csv, ". file: it, if it stays open."""

    path: str
    format: str
    place: str = ""
    file: ByteFile | None = None

    def open(self) -> ByteFile:
        return self.file or ByteFile(self.path)


class FileSource:
    """A Source of the rows of a file or stream, or of several files one after another."""

    typed = False

    def __init__(self, name: str, parts: Sequence[Part], *, rereadable: bool) -> None:
        self.name, self.rereadable = name, rereadable
        self._parts = parts

    def rows(self) -> Iterator[Row]:
        index = 0
        for part in self._parts:
            for row in read_part(part, index):
                yield row
                index = row.index + 1

    def digest(self) -> str | None:
        if not self.rereadable:
            return None
        whole = hashlib.blake2b()
        for part in self._parts:
            with part.open().open() as file:
                whole.update(part.format.encode() + hashlib.file_digest(file, hashlib.blake2b).digest())
        return whole.hexdigest()


class ParquetSource(FileSource):
    """A Source of the rows of Parquet files."""

    typed = True

    def __init__(self, name: str, parts: Sequence[Part]) -> None:
        super().__init__(name, parts, rereadable=True)
        self.schema = common_schema([read_schema(part.open()) for part in parts], name)

    def batches(self) -> Iterator[pa.RecordBatch]:
        """The rows of all files with the schema of the source."""
        for part in self._parts:
            yield from read_batches(part.open(), self.schema)


def read_part(part: Part, index: int) -> Iterator[Row]:
    """The rows of one file. index: of the first row."""
    file = part.open()
    if part.format == "parquet":
        from pybatch.jobs.sources.arrow_rows import rows_of_batches

        yield from rows_of_batches(read_batches(file), part.place, index)
        return
    with decompressed(file.open(), file.name) as lines:
        try:
            if part.format == "json" and begins_array(lines):
                yield from read_json_array(lines, f"{part.place}row ", index)
            else:
                yield from LINE_READERS[part.format](lines, f"{part.place}line ", index)
        except (HeaderError, ArrayError) as error:
            raise unreadable(file.name, error) from error
