"""Rows of Arrow's record batches. Imported only where there are some."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import pyarrow as pa

from pybatch.jobs.rows import Row
from pybatch.jobs.sources.json_values import json_value
from pybatch.jobs.sources.parquet import BATCH_BYTES, BATCH_ROWS


def rows_of_batches(batches: Iterable[pa.RecordBatch], place: str = "", index: int = 0) -> Iterator[Row]:
    """A row is a batch's row, with its columns as fields. place: what stands before "row 7", which counts from 0.
    index: of the first row. A value that Python has no type for is its row's error."""
    number = 0
    for batch in pieces(batches):
        size = max(1, batch.nbytes // max(1, batch.num_rows))
        columns = [python_values(column) for column in batch.columns]
        for values in zip(*columns, strict=True) if columns else [()] * batch.num_rows:
            fields, error = row_fields(batch.schema.names, values)
            yield Row(index, f"{place}row {number}", size, fields, error)
            index += 1
            number += 1


def pieces(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """The batches in pieces of bounded size."""
    for batch in batches:
        rows = max(1, min(BATCH_ROWS, BATCH_BYTES * batch.num_rows // max(1, batch.nbytes)))
        for start in range(0, batch.num_rows, rows):
            yield batch.slice(start, rows)


def row_fields(names: list[str], values: Iterable[Any]) -> tuple[dict[str, Any], str | None]:
    fields: dict[str, Any] = {}
    error = None
    for name, value in zip(names, values, strict=True):
        try:
            if isinstance(value, Exception):
                raise value
            fields[name] = json_value(value, 1)
        except (ValueError, OverflowError, RecursionError) as caught:
            error = error or f"{name}: {caught}"
    return fields, error


def python_values(column: pa.Array) -> list[Any]:
    """The column's values; in place of one that cannot be had its text, or the error."""
    try:
        return column.to_pylist()  # type: ignore[no-any-return]
    except (ValueError, OverflowError, pa.ArrowException):
        return [python_value(value) for value in column]


def python_value(value: pa.Scalar) -> Any:
    try:
        return value.as_py()
    except (ValueError, OverflowError, pa.ArrowException) as error:
        if pa.types.is_temporal(value.type):  # nanoseconds, or a year that datetime does not reach
            try:
                text: str = value.cast(pa.string()).as_py()
            except pa.ArrowException:
                return error
            return text if text.startswith("<") else text.replace(" ", "T", 1)  # <value out of range: ...>
        return error
