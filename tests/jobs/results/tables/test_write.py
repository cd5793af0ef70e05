from __future__ import annotations

import gzip
import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet as pq

from pybatch.jobs.results.tables import OUTPUT_FORMATS, TableFormat, table_format, write_table
from pybatch.jobs.results.tables import parquet as parquet_writer
from pybatch.jobs.sources import open_source

TEXT = st.text(max_size=8)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)
ROWS = st.lists(st.dictionaries(TEXT | st.sampled_from("abc"), VALUES, max_size=4), max_size=6)


def written(rows: list[dict[str, Any]], format: str, compression: str | None = None) -> bytes:
    file = io.BytesIO()
    write_table(file, TableFormat(format, compression), lambda: rows)
    assert not file.closed
    return file.getvalue()


def read_back(data: bytes, folder: Path, name: str) -> list[dict[str, Any]]:
    (folder / name).write_bytes(data)
    rows = list(open_source(folder / name).rows())
    assert all(row.error is None for row in rows)
    return [row.fields for row in rows]


def without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: without_nulls(item) for name, item in value.items() if item is not None}
    return [without_nulls(item) for item in value] if isinstance(value, list) else value


def same(read: Any, written: Any) -> bool:
    """Whether what was read is what was written, or its text where its column has no type."""
    if isinstance(read, dict) and isinstance(written, dict):
        return read.keys() == written.keys() and all(same(read[name], written[name]) for name in read)
    if isinstance(read, list) and isinstance(written, list):
        return len(read) == len(written) and all(map(same, read, written))
    return read == written or (isinstance(read, str) and without_nulls(json.loads(read)) == written)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tables")


@settings(max_examples=60)
@given(rows=ROWS)
def test_parquet_holds_what_was_written(rows: list[dict[str, Any]], folder: Path) -> None:
    rows = [{"row": number, **row} for number, row in enumerate(rows)]
    read = read_back(written(rows, "parquet"), folder, "rows.parquet")
    assert len(read) == len(rows)
    for one, other in zip(read, rows, strict=True):
        assert same(without_nulls(one), without_nulls(other))


def test_a_name_that_is_no_unicode_is_a_column_too(folder: Path) -> None:
    (row,) = read_back(written([{"\ud800": 1, "b": "x"}], "parquet"), folder, "names.parquet")
    assert row == {"\\ud800": 1, "b": "x"}


@settings(max_examples=60)
@given(rows=ROWS, format=st.sampled_from(["csv", "tsv"]))
def test_csv_holds_what_was_written_with_values_as_json(rows: list[dict[str, Any]], format: str, folder: Path) -> None:
    rows = [{"row": number, **row} for number, row in enumerate(rows)]
    read = read_back(written(rows, format), folder, f"rows.{format}")
    names = list(dict.fromkeys(name for row in rows for name in row))
    assert len(read) == len(rows)
    for one, other in zip(read, rows, strict=True):
        assert list(one) == names
        for name in names:
            value = other.get(name)
            expected = "" if value is None else value
            assert one[name] == expected or json.loads(one[name]) == expected


def test_csv_is_what_others_read_too() -> None:
    rows = [{"a": 'x, "y"\n\rz', "b": 1}, {"b": None, "c": {"k": [True, "é"]}}, {"a": "\ud800", "b": 2.5}]
    data = written(rows, "csv")
    assert data.decode() == 'a,b,c\n"x, ""y""\n\rz",1,\n,,"{""k"": [true, ""é""]}"\n\\ud800,2.5,\n'
    frame = pd.read_csv(io.BytesIO(data))
    assert frame["a"][0] == 'x, "y"\n\rz'
    assert json.loads(frame["c"][1]) == {"k": [True, "é"]}
    assert written([{"a": None}, {"a": ""}], "csv") == b'a\n""\n""\n'
    assert written([], "csv") == b""


@pytest.mark.parametrize("format", OUTPUT_FORMATS)
def test_the_same_rows_give_the_same_bytes_and_compression_is_around_them(format: str) -> None:
    rows = [{"row": number, "response": "a" * number, "usage": {"n": number}} for number in range(50)]
    plain = written(rows, format)
    assert plain == written(rows, format)
    assert gzip.decompress(written(rows, format, "gzip")) == plain
    assert written(rows, format, "gzip") == written(rows, format, "gzip")
    decompress = zstandard.ZstdDecompressor().decompressobj().decompress
    assert decompress(written(rows, format, "zstd")) == plain


def test_json_lines_keep_every_value() -> None:
    rows = [{"text": "é \ud800 \u2028", "big": 12345678901234567890, "float": 1.0}]
    data = written(rows, "jsonl")
    assert data.count(b"\n") == 1
    assert json.loads(data) == rows[0]


@pytest.mark.parametrize(
    ("name", "format", "expected"),
    [
        ("out.jsonl", None, TableFormat("jsonl")),
        ("out", None, TableFormat("jsonl")),
        ("out.txt", None, TableFormat("jsonl")),
        ("a.b/out.CSV", None, TableFormat("csv")),
        ("out.tsv.gz", None, TableFormat("tsv", "gzip")),
        ("out.jsonl.zst", None, TableFormat("jsonl", "zstd")),
        ("out.parquet", None, TableFormat("parquet")),
        ("out.parquet", "csv", TableFormat("csv")),
        ("-", "csv", TableFormat("csv")),
    ],
)
def test_the_name_says_the_format(name: str, format: str | None, expected: TableFormat) -> None:
    assert table_format(name, format) == expected


def test_formats_that_cannot_be_written_are_refused() -> None:
    with pytest.raises(ValueError, match="format: expected one of jsonl, csv, tsv, parquet, got 'xml'"):
        table_format("out", "xml")
    with pytest.raises(ValueError, match=r"out\.parquet\.gz: a Parquet file is compressed inside"):
        table_format("out.parquet.gz")


def test_row_groups_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet_writer, "BATCH_BYTES", 1000)
    monkeypatch.setattr(parquet_writer, "GROUP_BYTES", 5000)
    rows = [{"text": "x" * 100, "n": number} for number in range(1000)]
    data = io.BytesIO(written(rows, "parquet"))
    metadata = pq.ParquetFile(data).metadata
    groups = [metadata.row_group(number).num_rows for number in range(metadata.num_row_groups)]
    assert sum(groups) == 1000
    assert max(groups) <= 60
    assert pq.read_table(data).to_pylist() == rows


MEMORY = """
import re, sys
from pathlib import Path
from pybatch.jobs.sources import open_source
from pybatch.jobs.results.tables import table_format, write_joined, write_table

def peak(rows):
    def make():
        for number in range(rows):
            yield {"row": number, "prompt": f"{number} " + "p" * 4000, "usage": {"prompt_tokens": number}, "x": [0.5]}

    path = sys.argv[1]
    with open(path, "wb") as file:
        write_table(file, table_format(path), make)
    source = open_source(path)
    assert sum(1 for row in source.rows() if row.error is None) == rows
    if source.typed:
        with open(path + ".joined", "wb") as file:
            write_joined(file, source, lambda: ({"row": number, "response": "r" * 50} for number in range(rows)))
    # Of this program alone; ru_maxrss begins with what the process had that started it.
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) >> 10

before = peak(1000)
print(peak(25_000) - before)
"""


@pytest.mark.parametrize("format", ["jsonl.zst", "csv.gz", "parquet"])
def test_memory_does_not_grow_with_rows(format: str, folder: Path) -> None:
    command = [sys.executable, "-c", MEMORY, str(folder / f"many.{format}")]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    assert int(run.stdout) < 60  # MiB; all rows take 100 as text
