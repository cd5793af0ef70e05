"""Writes a whole file of results."""

from __future__ import annotations

import json
from typing import BinaryIO

from pybatch.jobs.results.tables.compression import compressing
from pybatch.jobs.results.tables.delimited import Rows, write_delimited
from pybatch.jobs.results.tables.formats import TableFormat


def write_table(file: BinaryIO, table: TableFormat, rows: Rows) -> None:
    """Writes rows into an open file, which stays open, within bounded memory.

    rows: gives the rows, in JSON's types, each time that it is called. CSV and Parquet have a column for each field
    that any row has, in the order in which these appear. In CSV lists and objects are JSON text; Parquet has types for
    them, and JSON text only for a column whose values have no common type, which integers and floats have.
    """
    with compressing(file, table.compression) as out:
        match table.format:
            case "parquet":
                from pybatch.jobs.results.tables.parquet import write_parquet

                write_parquet(out, rows)
            case "jsonl":
                # An unpaired surrogate has no UTF-8 form; backslashreplace makes it the JSON escape that it came from.
                for row in rows():
                    out.write(json.dumps(row, ensure_ascii=False).encode(errors="backslashreplace") + b"\n")
            case other:
                write_delimited(out, rows, {"csv": ",", "tsv": "\t"}[other])
