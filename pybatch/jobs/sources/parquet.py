"""Parquet files, in batches of bounded size. pyarrow is imported when a file is read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from pybatch.jobs.sources.byte_file import ByteFile
from pybatch.jobs.sources.faults import first_repeated, missing_package, unreadable

if TYPE_CHECKING:
    import pyarrow as pa
    from pyarrow import parquet as pq

BATCH_BYTES = 4 << 20
BATCH_ROWS = 1024


def read_schema(file: ByteFile) -> pa.Schema:
    """The schema with its metadata. Raises OSError, with the file's name, if it is no whole Parquet file."""
    with opened(file) as parquet:
        schema = parquet.schema_arrow
    twice = first_repeated(schema.names)
    if twice is not None:
        raise unreadable(file.name, f"two columns have the name {twice!r}")
    return schema


def read_batches(file: ByteFile, schema: pa.Schema | None = None) -> Iterator[pa.RecordBatch]:
    """A file's rows. schema: to be converted to, where columns that the file lacks are null. Raises OSError, with the
    file's name, if it is damaged, after the rows before that."""
    with opened(file) as parquet:
        read = 0
        for group in range(parquet.num_row_groups):
            about = parquet.metadata.row_group(group)
            row = max(1, about.total_byte_size // max(1, about.num_rows))
            rows = max(1, min(BATCH_ROWS, BATCH_BYTES // row))
            for batch in parquet.iter_batches(rows, row_groups=[group], use_threads=False):
                read += batch.num_rows
                yield batch if schema is None or batch.schema.equals(schema) else converted(batch, schema)
        if read != parquet.metadata.num_rows:
            raise OSError(f"it says that it has {parquet.metadata.num_rows:,} rows, and has {read:,}")


@contextmanager
def opened(file: ByteFile) -> Iterator[pq.ParquetFile]:
    try:
        import pyarrow as pa
        from pyarrow import parquet as pq
    except ModuleNotFoundError:
        raise missing_package(file.name, "pyarrow", "parquet") from None
    if not file.rereadable:
        raise unreadable(file.name, "Parquet is read from files alone, not from a stream")
    try:
        # Pages are read one by one; the default reads a whole column of a row group.
        options = {"buffer_size": 1 << 20, "pre_buffer": False, "page_checksum_verification": True}
        with file.open() as bytes_, pq.ParquetFile(bytes_, **options) as parquet:
            yield parquet
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise unreadable(file.name, f"no Parquet file, or damaged: {' '.join(str(error).split())}") from error


def converted(batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    import pyarrow as pa

    arrays = [
        batch.column(field.name).cast(field.type)
        if field.name in batch.schema.names
        else pa.nulls(batch.num_rows, field.type)
        for field in schema
    ]
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def common_schema(schemas: Sequence[pa.Schema], name: str) -> pa.Schema:
    """That of all files. Raises OSError, with the source's name, if a column has types that do not go together."""
    if len(schemas) == 1:
        return schemas[0]
    import pyarrow as pa

    try:
        return pa.unify_schemas(schemas, promote_options="permissive").with_metadata(schemas[0].metadata)
    except pa.ArrowException as error:
        raise unreadable(name, f"the files' columns do not go together: {error}") from error
