"""Which format a file of results gets, by the ending of its name."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import dataclass

from pybatch.jobs.sources.faults import missing_package
from pybatch.jobs.sources.formats import compression_of, format_of

OUTPUT_FORMATS = ("jsonl", "csv", "tsv", "parquet")


@dataclass(frozen=True, slots=True)
class TableFormat:
    """format: one of OUTPUT_FORMATS. compression: gzip, zstd or None."""

    format: str
    compression: str | None = None


def table_format(name: str, format: str | None = None) -> TableFormat:
    """The format of a file of results.

    format: one of OUTPUT_FORMATS; None goes by the ending of the name (before .gz or .zst), and takes an unknown one as
    jsonl. Raises ValueError for another format, a Parquet file that would be compressed as a whole, and a package that
    is needed.
    """
    if format is not None and format not in OUTPUT_FORMATS:
        raise ValueError(f"format: expected one of {', '.join(OUTPUT_FORMATS)}, got {format!r}")
    known = format_of(name)
    table = TableFormat(format or (known if known in OUTPUT_FORMATS else "jsonl"), compression_of(name))
    if table.format == "parquet":
        if table.compression is not None:
            raise ValueError(f"{name}: a Parquet file is compressed inside; leave out the last ending")
        expect_package(name, "pyarrow", "parquet")
    if table.compression == "zstd" and sys.version_info < (3, 14):
        expect_package(name, "zstandard", "zstd")
    return table


def expect_package(name: str, package: str, extra: str) -> None:
    if importlib.util.find_spec(package) is None:
        raise missing_package(name, package, extra)
