"""Rows of CSV and TSV files."""

from __future__ import annotations

import csv
import io
from collections import deque
from collections.abc import Iterator, Sequence
from functools import partial

from pybatch.jobs.rows import Row
from pybatch.jobs.sources.faults import first_repeated
from pybatch.jobs.sources.lines import KEPT, MAX_ROW_BYTES, TOO_LONG, decode, skip_line

csv.field_size_limit(max(csv.field_size_limit(), MAX_ROW_BYTES))  # of the whole process; no field is longer than a row


def read_delimited(file: io.BufferedReader, place: str, index: int, *, delimiter: str) -> Iterator[Row]:
    """The rows of an open file, whose first row names the fields; all values are text.

    place: what stands before a line's number. index: of the first row. A row whose quotes are broken is an error of its
    first line alone: the next row is looked for in the next line. Raises HeaderError if the first row names no fields.
    """
    lines = _RowLines(file)
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    header: list[str] | None = None
    while True:
        lines.begin_row()
        error: str | None = None
        try:
            values = next(reader)
        except StopIteration:
            return
        except _RowTooLongError:
            error = TOO_LONG if lines.give_back() == 0 else "not valid CSV: a quoted field does not end"
        except csv.Error as caught:
            lines.give_back()
            error = f"not valid CSV: {caught}"
        error = lines.error or error
        if error is None and not values:  # a blank line
            continue
        if header is None:
            if error is None:
                error = header_error(values)
            if error is not None:
                raise HeaderError(f"line {lines.first}, the header: {error}")
            header = values
            continue
        if error is None and len(values) != len(header):
            error = f"expected the header's {len(header)} fields, got {len(values)}"
        fields = dict(zip(header, values, strict=True)) if error is None else {"line": lines.text()}
        yield Row(index, f"{place}{lines.first}", lines.size, fields, error)
        index += 1


read_csv = partial(read_delimited, delimiter=",")
read_tsv = partial(read_delimited, delimiter="\t")


class HeaderError(ValueError):
    """The first row does not name the fields."""


def header_error(names: Sequence[str]) -> str | None:
    twice = first_repeated(names)
    return None if twice is None else f"it names {twice!r} twice"


class _RowTooLongError(Exception):
    pass


class _RowLines:
    """The lines of a file, as csv.reader asks for them.

    first: the number of the row's first line, from 1. error: what is wrong with the row's text. size: in bytes.
    """

    def __init__(self, file: io.BufferedReader) -> None:
        self._file = file
        self._given_back: deque[bytes] = deque()
        self._taken: list[bytes] = []
        self._number = 0
        self.begin_row()

    def begin_row(self) -> None:
        self._taken.clear()
        self.first, self.size = self._number + 1, 0
        self.error: str | None = None

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = self._given_back.popleft() if self._given_back else self._read()
        if not line:
            raise StopIteration
        self._number += 1
        self._taken.append(line)
        self.size += len(line)
        if self.size > MAX_ROW_BYTES:
            raise _RowTooLongError
        try:
            return line.decode("utf-8-sig" if self._number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            self.error = f"not UTF-8: {error.reason}"
            return line.decode(errors="replace")

    def _read(self) -> bytes:
        """The next line; of one that is too long the beginning."""
        line = self._file.readline(MAX_ROW_BYTES + 1)
        if len(line) > MAX_ROW_BYTES and not line.endswith(b"\n"):
            skip_line(self._file)
            line = line[:-1] + b"\n"
        return line

    def give_back(self) -> int:
        """Lets the row end with its first line, and gives the number of lines that were behind it."""
        later = self._taken[1:]
        del self._taken[1:]
        self._given_back.extendleft(reversed(later))
        self._number -= len(later)
        self.size = len(self._taken[0])
        self.error = decode(self._taken[0])[1]
        return len(later)

    def text(self) -> str:
        return decode(b"".join(self._taken) if self.size <= MAX_ROW_BYTES else self._taken[0][:KEPT])[0]
