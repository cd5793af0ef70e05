"""Rows out of JSON Lines and text files, one at a time."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

Format = Literal["jsonl", "text"]


@dataclass(frozen=True)
class Row:
    """One row of the input.

    index: its position among the rows, from 0; blank lines are not counted. line: its number in the file, from 1.
    size: in bytes. error: why the line is not a row; fields then holds its text as "line".
    """

    index: int
    line: int
    size: int
    fields: dict[str, Any]
    error: str | None = None


def read_rows(lines: Iterable[bytes], format: Format) -> Iterator[Row]:
    """The rows of an open file. A text file's line becomes a row with the field "prompt"; a JSON line is the row."""
    index = 0
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        fields, error = parse(line, format)
        yield Row(index, number, len(line), fields, error)
        index += 1


def parse(line: bytes, format: Format) -> tuple[dict[str, Any], str | None]:
    try:
        text = line.decode("utf-8-sig").rstrip("\r\n")
    except UnicodeDecodeError as error:
        return {"line": line.decode(errors="replace").rstrip("\r\n")}, f"not UTF-8: {error.reason}"
    if format == "text":
        return {"prompt": text}, None
    try:
        fields = json.loads(text, parse_constant=no_constant, parse_float=finite)
    except (ValueError, RecursionError) as error:
        return {"line": text}, f"not valid JSON: {error}"
    if not isinstance(fields, dict):
        return {"line": text}, f"expected a JSON object, got {type(fields).__name__}"
    return fields, None


def no_constant(name: str) -> float:
    raise ValueError(f"{name} is no JSON number")


def finite(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"{text} is out of range")
    return value
