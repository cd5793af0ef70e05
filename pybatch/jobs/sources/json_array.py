"""Rows of a JSON file that holds one array: a row is an element."""

from __future__ import annotations

import codecs
import io
import re
from collections.abc import Iterator
from json import JSONDecodeError, JSONDecoder

from pybatch.jobs.rows import Row
from pybatch.jobs.sources.lines import MAX_ROW_BYTES, TOO_LONG, parse_json

PIECE = 1 << 16
SPACE = re.compile(r"[ \t\r\n]*")

find_value = JSONDecoder().raw_decode


class ArrayError(ValueError):
    """The text is not that of an array, so that no more rows can be found in it."""


def begins_array(file: io.BufferedReader) -> bool:
    return file.peek(PIECE).removeprefix(codecs.BOM_UTF8).lstrip().startswith(b"[")


def read_json_array(file: io.BufferedReader, place: str, index: int) -> Iterator[Row]:
    """The rows of an open file, within memory of a few times the longest. place: what stands before a row's number in
    the file, from 0. index: of the first row.

    An element that is JSON but no row is that row's error. Raises ArrayError where the array is broken.
    """
    text = _Text(file)
    text.take()
    number = 0
    end = text.take() if text.peek() == "]" else ","
    while end == ",":
        try:
            element = text.take_value().encode(errors="surrogateescape")
        except ValueError as error:
            raise ArrayError(f"{place}{number}: {error}") from None
        yield Row(index + number, f"{place}{number}", len(element), *parse_json(element))
        number += 1
        end = text.take()
    if end != "]" or text.peek():
        expected = "nothing behind the array" if end == "]" else f"a comma or ] after {place}{number - 1}"
        raise ArrayError(f"not valid JSON: expected {expected}")


class _Text:
    """The text of a file, read in pieces. Bytes that are not UTF-8 are kept as surrogates."""

    def __init__(self, file: io.BufferedReader) -> None:
        self._file = file
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")("surrogateescape")
        self._text, self._at = "", 0

    def peek(self) -> str:
        """The next character that is not white space, "" at the end."""
        while True:
            self._at = SPACE.match(self._text, self._at).end()  # type: ignore[union-attr]
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._read():
                return ""

    def take(self) -> str:
        """And goes on behind it."""
        character = self.peek()
        self._at += len(character)
        return character

    def take_value(self) -> str:
        """The text of the next value. Raises ValueError if there is none within MAX_ROW_BYTES."""
        self.peek()
        while True:
            wrong = "not valid JSON: the array does not end"
            try:
                _, end = find_value(self._text, self._at)
                if end < len(self._text):  # or a number may go on
                    value, self._at = self._text[self._at : end], end
                    return value
            except JSONDecodeError as error:
                wrong = f"not valid JSON: {error.msg}"
            except RecursionError:
                raise ValueError("not valid JSON: nested too deeply") from None
            if len(self._text) - self._at > MAX_ROW_BYTES:
                raise ValueError(f"{TOO_LONG}, or {wrong}")
            if not self._read():
                raise ValueError(wrong)

    def _read(self) -> bool:
        """Reads at least as much as there is, so that a long value is not looked at again for each short piece."""
        left = self._text[self._at :]
        piece = self._file.read(max(PIECE, len(left)))
        self._text, self._at = left + self._decoder.decode(piece, final=not piece), 0
        return bool(piece)
