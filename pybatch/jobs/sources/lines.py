"""Rows of JSON Lines and text files: a row is a line."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from json import JSONDecoder
from typing import Any

from pybatch.jobs.rows import Row


def read_lines(lines: Iterable[bytes], format: str) -> Iterator[Row]:
    """The rows of an open file. A text file's line becomes a row with the field "prompt"; a JSON line is the row."""
    parse = {"jsonl": parse_json, "text": parse_text}[format]
    index = 0
    for number, line in enumerate(lines, start=1):
        if line.isspace():
            continue
        fields, error = parse(line)
        yield Row(index, f"line {number}", len(line), fields, error)
        index += 1


def parse_text(line: bytes) -> tuple[dict[str, Any], str | None]:
    text, error = decode(line)
    return ({"prompt": text}, None) if error is None else ({"line": text}, error)


def parse_json(line: bytes) -> tuple[dict[str, Any], str | None]:
    text, error = decode(line)
    if error is not None:
        return {"line": text}, error
    try:
        fields = decoder.decode(text)
    except (ValueError, RecursionError) as caught:
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


def no_constant(name: str) -> float:
    raise ValueError(f"{name} is no JSON number")


def finite(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"{text} is out of range")
    return value


decoder = JSONDecoder(parse_constant=no_constant, parse_float=finite)
