"""Writes CSV and TSV files."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, BinaryIO

from pybatch.jobs.results.tables.kinds import json_text

Rows = Callable[[], Iterable[Mapping[str, Any]]]


def write_delimited(file: BinaryIO, rows: Rows, delimiter: str) -> None:
    """A header, which names the columns in the order in which they appear, then the rows.

    Text stands as it is, None as nothing, everything else as JSON. Cells are quoted where they must be.
    """
    names = dict.fromkeys(name for row in rows() for name in row)
    quoted = re.compile(f'[{delimiter}"\\r\\n]')

    def line(cells: Iterable[Any]) -> bytes:
        text = delimiter.join(cell(value, quoted) for value in cells)
        return (text or '""').encode(errors="backslashreplace") + b"\n"  # an empty line would be no row

    if names:
        file.write(line(names))
    for row in rows():
        file.write(line(map(row.get, names)))


def cell(value: Any, quoted: re.Pattern[str]) -> str:
    if value is None:
        return ""
    text = value if isinstance(value, str) else json_text(value)
    return '"' + text.replace('"', '""') + '"' if quoted.search(text) or not text else text
