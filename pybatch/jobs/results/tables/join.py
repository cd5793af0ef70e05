"""Results as columns beside those of the rows: Parquet in, Parquet out; a frame in, a frame out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol, cast

from pybatch.jobs.dialects.plain import RESULT_FIELDS, kept
from pybatch.jobs.results.tables.kinds import INT, TEXT, Kind, ListKind, ObjectKind, column_kinds, fitted
from pybatch.jobs.rows import Source
from pybatch.jobs.sources.frames import ArrowSource, DatasetSource, PandasSource, PolarsSource
from pybatch.jobs.sources.in_memory import ListSource, item_fields
from pybatch.jobs.sources.json_values import key_text

if TYPE_CHECKING:
    import pyarrow as pa

Result = Mapping[str, Any]

# The columns that a joined table always has, with their kinds where they hold nothing.
COLUMNS: Mapping[str, Kind] = {
    "row": INT,
    "response": TEXT,
    "finish_reason": TEXT,
    "usage": ObjectKind({"prompt_tokens": INT, "completion_tokens": INT}),
    "error": TEXT,
}


class TypedSource(Source, Protocol):
    """A source whose rows are to be had as Arrow's record batches too."""

    @property
    def schema(self) -> pa.Schema: ...

    def batches(self) -> Iterator[pa.RecordBatch]: ...


def write_joined(file: BinaryIO, source: Source, results: Callable[[], Iterable[Result]]) -> None:
    """Writes the source's columns, with their types and metadata, and those of the results as a Parquet file, within
    bounded memory. source: a typed one.

    results: gives them in the order of their rows each time that it is called; "row" says which row each belongs to.
    They may hold the rows' own fields too, which are taken from the source. Rows without a result are left out. A
    column of the source that has the name of a result's field is kept as "input_<name>".
    """
    from pybatch.jobs.results.tables.parquet import RowGroups, arrow_array

    if not source.typed:
        raise TypeError(f"source: expected a typed one, got {type(source).__name__}")
    typed = cast(TypedSource, source)
    schema = typed.schema
    kinds = result_kinds(results(), schema.names)
    schema = joined_schema(schema, kinds)
    with RowGroups(file, schema) as groups:
        for batch, found in paired(typed.batches(), results()):
            columns = [arrow_array([result.get(name) for result in found], kind) for name, kind in kinds.items()]
            groups.append(type(batch).from_arrays([*batch.columns, *columns], schema=schema))


def join_results(source: Source, results: Iterable[Result], *, answer_columns: bool = True) -> Any:
    """The data in memory that the source was made of, with the results as in `write_joined`: a new object of the same
    kind, except that strings become dicts. What came from an iterator is gone: the results are given as they are.

    answer_columns: those of COLUMNS are always there; else "row" alone is, beside those that results have."""
    if isinstance(source, ListSource):
        return join_list(source, results)
    if type(source) not in JOINS:
        raise TypeError(f"source: expected one of data in memory, got {type(source).__name__}")
    data = cast(Any, source).data
    found = list(results)
    rows = [result["row"] for result in found]
    names = data.column_names if hasattr(data, "column_names") else data.columns
    kinds = result_kinds(found, names, COLUMNS if answer_columns else {"row": INT})
    columns = {name: [result.get(name) for result in found] for name in kinds}
    return JOINS[type(source)](data, None if rows == list(range(len(data))) else rows, columns, kinds)


def result_kinds(
    results: Iterable[Result], names: Iterable[Any], always: Mapping[str, Kind] = COLUMNS
) -> dict[str, Kind]:
    """Of the columns that results become. names: of the source's columns. always: those that are there in any case."""
    own = own_fields(names)
    kinds = column_kinds((added_fields(result, own) for result in results), always)
    order = [*RESULT_FIELDS, *kinds]
    return {name: kinds[name] for name in dict.fromkeys(order) if name in kinds}


def own_fields(names: Iterable[Any]) -> frozenset[str]:
    """The names that a row's own fields have in its result."""
    return frozenset(kept(dict.fromkeys(map(key_text, names))))


def added_fields(result: Result, own: frozenset[str]) -> dict[str, Any]:
    return {name: value for name, value in result.items() if name not in own}


def kept_names(names: Iterable[Any]) -> list[Any]:
    """The names that columns of the rows have beside those of results."""
    return list(kept(dict.fromkeys(names)))


def renamed(names: Iterable[Any]) -> dict[Any, Any]:
    """The new names of the columns that get one."""
    before = list(names)
    return {old: new for old, new in zip(before, kept_names(before), strict=True) if old != new}


def joined_schema(schema: pa.Schema, kinds: Mapping[str, Kind]) -> pa.Schema:
    import pyarrow as pa

    from pybatch.jobs.results.tables.parquet import arrow_type

    own = [field.with_name(name) for field, name in zip(schema, kept_names(schema.names), strict=True)]
    added = [pa.field(name, arrow_type(kind)) for name, kind in kinds.items()]
    return pa.schema([*own, *added], metadata=schema.metadata)


def paired(
    batches: Iterable[pa.RecordBatch], results: Iterable[Result]
) -> Iterator[tuple[pa.RecordBatch, list[Result]]]:
    """The rows of each batch that have results, and these."""
    import pyarrow as pa

    from pybatch.jobs.sources.arrow_rows import pieces

    left = iter(results)
    result = next(left, None)
    start = 0
    for batch in pieces(batches):
        found = []
        while result is not None and result["row"] < start + batch.num_rows:
            found.append(result)
            result = next(left, None)
        if found:
            rows = [result["row"] - start for result in found]
            yield (batch if len(rows) == batch.num_rows else batch.take(pa.array(rows, pa.int64()))), found
        start += batch.num_rows


def join_list(source: ListSource, results: Iterable[Result]) -> list[dict[Any, Any]]:
    items: Any = source.items
    if not source.rereadable:
        return [dict(result) for result in results]
    joined = []
    for result in results:
        item = items[result["row"]]
        own = dict(item) if isinstance(item, Mapping) else item_fields(item)[0]
        joined.append({**kept(own), **added_fields(result, own_fields(own))})
    return joined


# A join takes the data, the numbers of the rows that have results (None: all), and the results' columns.
Columns = Mapping[str, list[Any]]
Kinds = Mapping[str, Kind]


def join_arrow(table: Any, rows: list[int] | None, columns: Columns, kinds: Kinds) -> Any:
    import pyarrow as pa

    from pybatch.jobs.results.tables.parquet import arrow_array

    schema = joined_schema(table.schema, kinds)
    chosen = table if rows is None else table.take(pa.array(rows, pa.int64()))
    added = [arrow_array(values, kinds[name]) for name, values in columns.items()]
    return type(table).from_arrays([*chosen.columns, *added], schema=schema)


def join_dataset(dataset: Any, rows: list[int] | None, columns: Columns, kinds: Kinds) -> Any:
    import datasets
    import pyarrow as pa

    from pybatch.jobs.results.tables.parquet import arrow_array

    chosen = dataset if rows is None else dataset.select(rows)
    renames = renamed(chosen.column_names)
    added = pa.table({name: arrow_array(values, kinds[name]) for name, values in columns.items()})
    if not added.num_rows:  # to concatenate would leave out what has no rows
        features = {renames.get(name, name): of for name, of in chosen.features.items()}
        features |= datasets.Features.from_arrow_schema(added.schema)
        return datasets.Dataset(datasets.Features(features).arrow_schema.empty_table())
    return datasets.concatenate_datasets([chosen.rename_columns(renames), datasets.Dataset(added)], axis=1)


def join_polars(frame: Any, rows: list[int] | None, columns: Columns, kinds: Kinds) -> Any:
    import polars as pl

    scalars: dict[Any, Any] = {"bool": pl.Boolean, "int": pl.Int64, "long": pl.Int64, "float": pl.Float64}

    def polars_type(kind: Kind) -> Any:
        match kind:
            case ListKind(item):
                return pl.List(polars_type(item))
            case ObjectKind(fields):
                return pl.Struct({name: polars_type(of) for name, of in fields.items()})
        return scalars.get(kind, pl.String)

    chosen = frame if rows is None else frame[rows]
    added = [
        pl.Series(name, [fitted(value, kinds[name]) for value in values], polars_type(kinds[name]), strict=False)
        for name, values in columns.items()
    ]
    return chosen.rename(renamed(chosen.columns)).with_columns(added)


def join_pandas(frame: Any, rows: list[int] | None, columns: Columns, kinds: Kinds) -> Any:
    import pandas as pd

    chosen = frame.copy(deep=False) if rows is None else frame.iloc[rows].copy()
    chosen = chosen.rename(columns=renamed(chosen.columns))
    for name, values in columns.items():
        scalars = isinstance(kinds[name], str) and any(value is not None for value in values)
        chosen[name] = pd.Series(values, index=chosen.index, dtype=None if scalars else object)
    return chosen


JOINS: Mapping[type, Callable[[Any, list[int] | None, Columns, Kinds], Any]] = {
    ArrowSource: join_arrow,
    DatasetSource: join_dataset,
    PolarsSource: join_polars,
    PandasSource: join_pandas,
}
