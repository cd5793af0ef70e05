"""Rows of tables that are in memory: Arrow tables, pandas and polars frames, Hugging Face datasets.

Each library is the caller's: it is imported here only through its own objects, and pyarrow where Arrow is asked for.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from pybatch.jobs.rows import Row
from pybatch.jobs.sources.faults import first_repeated, missing_package
from pybatch.jobs.sources.in_memory import digest_of, size_of
from pybatch.jobs.sources.json_values import json_fields, json_value
from pybatch.jobs.sources.parquet import BATCH_ROWS

if TYPE_CHECKING:
    import datasets
    import pandas as pd
    import polars as pl
    import pyarrow as pa


class ArrowSource:
    """A Source of the rows of a pyarrow Table."""

    typed = rereadable = True

    def __init__(self, data: pa.Table, name: str) -> None:
        self.data, self.name = data, name
        self.schema = data.schema
        expect_distinct(self.schema.names, name)

    def rows(self) -> Iterator[Row]:
        from pybatch.jobs.sources.arrow_rows import rows_of_batches

        return rows_of_batches(self.batches())

    def batches(self) -> Iterator[pa.RecordBatch]:
        yield from self.data.to_batches()

    def digest(self) -> str:
        return digest_of(self.rows())


class DatasetSource(ArrowSource):
    """A Source of the rows of a Hugging Face Dataset; images and sounds are not decoded."""

    data: datasets.Dataset

    def __init__(self, data: datasets.Dataset, name: str) -> None:
        self.data, self.name = data, name
        self.schema = data.features.arrow_schema

    def batches(self) -> Iterator[pa.RecordBatch]:
        for table in self.data.with_format("arrow").iter(BATCH_ROWS):
            yield from table.to_batches()


class FrameSource(ABC):
    """What the frames of pandas and polars share. data: the frame."""

    typed = rereadable = True

    def __init__(self, data: Any, name: str) -> None:
        self.data, self.name = data, name
        expect_distinct(map(str, data.columns), name)

    @abstractmethod
    def tuples(self) -> Iterator[tuple[Any, ...]]:
        """The rows' values, in the order of the columns."""

    def rows(self) -> Iterator[Row]:
        names = list(self.data.columns)
        for index, values in enumerate(self.tuples()):
            error = None
            try:
                fields = json_fields(zip(names, values, strict=True))
            except (ValueError, RecursionError) as caught:
                fields, error = {}, str(caught)
            yield Row(index, f"row {index}", size_of(fields), fields, error)

    def digest(self) -> str:
        return digest_of(self.rows())


class PolarsSource(FrameSource):
    """A Source of the rows of a polars DataFrame."""

    data: pl.DataFrame

    def tuples(self) -> Iterator[tuple[Any, ...]]:
        return self.data.iter_rows()

    @property
    def schema(self) -> pa.Schema:
        expect_pyarrow(self.name)
        return self.data.clear().to_arrow().schema

    def batches(self) -> Iterator[pa.RecordBatch]:
        for piece in self.data.iter_slices(BATCH_ROWS):
            yield from piece.to_arrow().to_batches()


class PandasSource(FrameSource):
    """A Source of the rows of a pandas DataFrame."""

    data: pd.DataFrame

    def __init__(self, data: pd.DataFrame, name: str) -> None:
        super().__init__(data, name)
        if data.columns.nlevels > 1:
            raise ValueError(
                f"{name} has column names of {data.columns.nlevels} levels, expected one: "
                "data.columns = ['_'.join(map(str, name)) for name in data.columns]"
            )

    def tuples(self) -> Iterator[tuple[Any, ...]]:
        columns = [self.data.iloc[:, number] for number in range(self.data.shape[1])]
        return zip(*columns, strict=True) if columns else iter([()] * len(self.data))

    @property
    def schema(self) -> pa.Schema:
        return self.arrow().schema

    def batches(self) -> Iterator[pa.RecordBatch]:
        yield from self.arrow().to_batches(BATCH_ROWS)

    def arrow(self) -> pa.Table:
        """The frame with its index; a column whose values have no common type becomes JSON text."""
        expect_pyarrow(self.name)
        import pyarrow as pa

        frame = self.data.set_axis([str(name) for name in self.data.columns], axis=1)
        for number, name in enumerate(frame.columns):
            try:
                pa.array(frame.iloc[:, number], from_pandas=True)
            except (pa.ArrowException, TypeError, ValueError, OverflowError):
                frame[name] = [json.dumps(json_value(value), ensure_ascii=False) for value in frame.iloc[:, number]]
        return pa.Table.from_pandas(frame)


def expect_distinct(names: Any, source: str) -> None:
    twice = first_repeated(names)
    if twice is not None:
        raise ValueError(f"{source} has two columns of the name {twice!r}")


def expect_pyarrow(name: str) -> None:
    try:
        import pyarrow  # noqa: F401
    except ModuleNotFoundError:
        raise missing_package(f"{name} as Arrow", "pyarrow", "parquet") from None
