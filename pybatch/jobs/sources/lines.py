"""Rows of JSON Lines and text files: a row is a line."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterator
from json import JSONDecoder
from typing import Any

from pybatch.jobs.rows import Row
from pybatch.jobs.sources.json_values import MAX_DEPTH

MAX_ROW_BYTES = 32 << 20
TOO_LONG = f"longer than the {MAX_ROW_BYTES >> 20} MiB that a row may have"
KEPT = 1000  # bytes of a row that is too long

Parsed = tuple[dict[str, Any], str | None]  # a row's fields, and what is wrong with it


def read_json_lines(file: io.BufferedReader, place: str, index: int) -> Iterator[Row]:
    """A line is a row's JSON object. Of two fields of the same name the last one counts."""
    return read_lines(file, parse_json, place, index)


def read_text_lines(file: io.BufferedReader, place: str, index: int) -> Iterator[Row]:
    """A line is a row's field "prompt"."""
    return read_lines(file, parse_text, place, index)


def read_lines(file: io.BufferedReader, parse: Callable[[bytes], Parsed], place: str, index: int) -> Iterator[Row]:
    """The rows of an open file. place: what stands before a line's number. index: of the first row."""
    number = 0
    while line := file.readline(MAX_ROW_BYTES + 1):
        number += 1
        if line.isspace():
            continue
        size = len(line)
        if size > MAX_ROW_BYTES:
            size += skip_line(file) if not line.endswith(b"\n") else 0
            parsed: Parsed = {"line": decode(line[:KEPT])[0]}, TOO_LONG
        else:
            parsed = parse(line)
        yield Row(index, f"{place}{number}", size, *parsed)
        index += 1


def skip_line(file: io.BufferedReader) -> int:
    """Reads up to the end of the line, and gives the number of bytes."""
    size = 0
    while piece := file.readline(1 << 20):
        size += len(piece)
        if piece.endswith(b"\n"):
            break
    return size


def parse_text(line: bytes) -> Parsed:
    text, error = decode(line)
    return ({"prompt": text}, None) if error is None else ({"line": text}, error)


def parse_json(line: bytes) -> Parsed:
    text, error = decode(line)
    if error is not None:
        return {"line": text}, error
    try:
        fields = decode_json(text)
        if text.count("{") + text.count("[") > MAX_DEPTH:
            expect_flat(fields)
    except RecursionError:
        return {"line": text}, f"not valid JSON: nested more than {MAX_DEPTH} levels deep"
    except ValueError as caught:
        return {"line": text}, f"not valid JSON: {caught}"
    if not isinstance(fields, dict):
        return {"line": text}, f"expected a JSON object, got {type(fields).__name__}"
    return fields, None


def decode(line: bytes) -> tuple[str, str | None]:
    """The line's text, without its end, and what is wrong with it."""
    try:
        return line.decode("utf-8-sig").rstrip("\r\n"), None
    except UnicodeDecodeError as error:
        return line.decode(errors="replace").rstrip("\r\n"), f"not UTF-8: {error.reason}"


def expect_flat(value: Any) -> None:
    """Raises RecursionError if the value is nested more than MAX_DEPTH levels deep."""
    level = [value]
    for _ in range(MAX_DEPTH + 1):
        items = [item.values() if isinstance(item, dict) else item for item in level if isinstance(item, dict | list)]
        if not items:
            return
        level = [inner for item in items for inner in item]
    raise RecursionError


def no_constant(name: str) -> float:
    raise ValueError(f"{name} is no JSON number")


def finite(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"{text} is out of range")
    return value


decode_json = JSONDecoder(parse_constant=no_constant, parse_float=finite).decode
