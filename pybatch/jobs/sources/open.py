"""Finds the source that fits what a job is given."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pybatch.api.inputs import as_list
from pybatch.jobs.rows import Source
from pybatch.jobs.sources.byte_file import ByteFile
from pybatch.jobs.sources.compression import decompressor
from pybatch.jobs.sources.file_source import FileSource, ParquetSource, Part
from pybatch.jobs.sources.formats import INPUT_FORMATS, compression_of, format_of
from pybatch.jobs.sources.frames import ArrowSource, DatasetSource, PandasSource, PolarsSource
from pybatch.jobs.sources.in_memory import ListSource
from pybatch.jobs.sources.latitude import LatitudeSource
from pybatch.jobs.sources.paths import files_of
from pybatch.latitude.addresses import DatasetAddress, is_dataset


def open_source(data: Any, format: str | None = None) -> Source:
    """Opens what a job reads.

    data: the path of a file, a folder or a glob (`files_of` says which files these stand for), "-" for standard input,
    or latitude:PROJECT/DATASET; or what is in memory: a list or column of dicts or prompts, a pandas or polars
    DataFrame, a pyarrow Table or a Hugging Face Dataset. Anything else that yields dicts or prompts is read once, as a
    stream is.

    format: one of INPUT_FORMATS, for all files; None goes by the endings of their names (before .gz or .zst), and takes
    an unknown one as jsonl. Raises OSError, with the path, for a file that cannot be read, ValueError for another
    format or a package that is needed, TypeError for data of another type.
    """
    if format is not None and format not in INPUT_FORMATS:
        raise ValueError(f"format: expected one of {', '.join(INPUT_FORMATS)}, got {format!r}")
    if isinstance(data, str) and is_dataset(data):
        if format is not None:
            raise ValueError(f"format: is for files; got it with {data}")
        return LatitudeSource(DatasetAddress.parse(data))
    if isinstance(data, str | os.PathLike):
        return open_files(os.fspath(data), format)
    if format is not None:
        raise ValueError(f"format: is for files; got it with a {type(data).__name__}")
    return open_data(data)


def open_files(path: str, format: str | None) -> Source:
    paths = files_of(path, format)
    alone = paths == [path]
    top = "" if alone else os.path.commonpath([os.path.dirname(each) or "." for each in paths])
    parts = []
    rereadable = True
    for each in paths:
        file = ByteFile(each)
        rereadable &= file.rereadable
        compression = compression_of(each)
        if compression is not None:
            decompressor(compression, each)  # raises if its package is missing
        parts.append(
            Part(
                each,
                format or format_of(each) or "jsonl",
                place="" if alone else f"{os.path.relpath(each, top)}, ",
                file=file if alone or not file.rereadable else None,  # a process has not many open files
            )
        )
    name = parts[0].open().name if alone else path
    if all(part.format == "parquet" for part in parts):
        return ParquetSource(name, parts)
    return FileSource(name, parts, rereadable=rereadable)


def open_data(data: Any) -> Source:
    """Knows the types of libraries by their names, so that none needs to be installed."""
    name = f"the {type(data).__name__}"
    for base in type(data).__mro__:
        match base.__module__.partition(".")[0], base.__name__:
            case "pandas", "DataFrame":
                return PandasSource(data, name)
            case "polars", "DataFrame":
                return PolarsSource(data, name)
            case "polars", "LazyFrame":
                return PolarsSource(data.collect(), name)
            case "pyarrow", "Table":
                return ArrowSource(data, name)
            case "datasets", "Dataset":
                return DatasetSource(data, name)
            case "datasets", "DatasetDict":
                raise TypeError(
                    f"data: a DatasetDict has splits; give one of them: data[{next(iter(data), 'train')!r}]"
                )
    if isinstance(data, Iterable) and not isinstance(data, Mapping | bytes | bytearray):
        # A column or an array has no more than its length; what has none may give other items when it is read again.
        sized = hasattr(data, "__len__") and not isinstance(data, Sequence)
        return ListSource(list(as_list(data)) if sized else data, name)  # type: ignore[call-overload]
    raise TypeError(
        "data: expected a path, a list of dicts or of prompts, a pandas or polars DataFrame, a pyarrow Table or a "
        f"Hugging Face Dataset, got {name}"
    )
