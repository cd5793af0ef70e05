from __future__ import annotations

import pytest

from pybatch.jobs.sources.formats import compression_of, format_of


@pytest.mark.parametrize(
    ("name", "format", "compression"),
    [
        ("a/b.c/rows.jsonl", "jsonl", None),
        ("rows.NDJSON.GZ", "jsonl", "gzip"),
        ("my.rows.csv.zst", "csv", "zstd"),
        ("rows.parquet", "parquet", None),
        ("rows.json.gz", "json", "gzip"),
        ("a.b/rows", None, None),
        ("rows.gz", None, "gzip"),
        (".txt", None, None),
        ("-", None, None),
    ],
)
def test_endings(name: str, format: str | None, compression: str | None) -> None:
    assert (format_of(name), compression_of(name)) == (format, compression)
