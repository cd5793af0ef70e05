"""Writes Parquet files, with row groups of bounded size. Imported only where one is written."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, BinaryIO, Self

import pyarrow as pa
from pyarrow import parquet as pq

from pybatch.jobs.results.tables.delimited import Rows
from pybatch.jobs.results.tables.kinds import (
    BOOL,
    FLOAT,
    INT,
    LONG,
    Kind,
    ListKind,
    ObjectKind,
    column_kinds,
    escaped,
    fitted,
)

GROUP_ROWS = 1 << 17
GROUP_BYTES = 8 << 20
BATCH_ROWS = 1 << 10
BATCH_BYTES = 1 << 20

SCALARS = {BOOL: pa.bool_(), INT: pa.int64(), LONG: pa.int64(), FLOAT: pa.float64()}


def write_parquet(file: BinaryIO, rows: Rows) -> None:
    """Columns in the order in which they appear, of types that hold all of their values."""
    kinds = column_kinds(rows())
    schema = pa.schema([(escaped(name), arrow_type(kind)) for name, kind in kinds.items()])
    with RowGroups(file, schema) as groups:
        for batch in bounded(rows()):
            arrays = [arrow_array([row.get(name) for row in batch], kind) for name, kind in kinds.items()]
            groups.append(pa.RecordBatch.from_arrays(arrays, schema=schema))


class RowGroups:
    """A Parquet file to which batches are appended. They are written once they make up a row group."""

    def __init__(self, file: BinaryIO, schema: pa.Schema) -> None:
        self._schema = schema
        self._writer = pq.ParquetWriter(file, schema, write_page_checksum=True)
        self._batches: list[pa.RecordBatch] = []
        self._rows = self._bytes = 0

    def append(self, batch: pa.RecordBatch) -> None:
        self._batches.append(batch)
        self._rows += batch.num_rows
        self._bytes += batch.nbytes
        if self._rows >= GROUP_ROWS or self._bytes >= GROUP_BYTES:
            self._write()

    def _write(self) -> None:
        if self._rows:
            self._writer.write_table(pa.Table.from_batches(self._batches, self._schema), row_group_size=self._rows)
        self._batches, self._rows, self._bytes = [], 0, 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if error is None:
            self._write()
        self._writer.close()


def arrow_type(kind: Kind) -> pa.DataType:
    """Of a settled kind."""
    match kind:
        case ListKind(item):
            return pa.list_(arrow_type(item))
        case ObjectKind(fields):
            return pa.struct([(name, arrow_type(of)) for name, of in fields.items()])
    return SCALARS.get(kind, pa.string())


def arrow_array(values: Sequence[Any], kind: Kind) -> pa.Array:
    return pa.array([fitted(value, kind) for value in values], arrow_type(kind))


def bounded(rows: Iterable[Mapping[str, Any]]) -> Iterator[list[Mapping[str, Any]]]:
    """The rows in lists of bounded size."""
    batch: list[Mapping[str, Any]] = []
    size = 0
    for row in rows:
        batch.append(row)
        size += weight(row)
        if len(batch) >= BATCH_ROWS or size >= BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def weight(value: Any) -> int:
    """About how many bytes a value takes."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, Mapping):
        return sum(map(weight, value.values()))
    return sum(map(weight, value)) if isinstance(value, list) else 8
