from __future__ import annotations

import pytest

from pybatch.jobs.sources.formats import compression_of, format_of, stem


@pytest.mark.parametrize(
    ("name", "format", "compression", "rest"),
    [
        ("a/b.c/rows.jsonl", "jsonl", None, "a/b.c/rows"),
        ("rows.NDJSON.GZ", "jsonl", "gzip", "rows"),
        ("my.rows.csv.zst", "csv", "zstd", "my.rows"),
        ("rows.parquet", "parquet", None, "rows"),
        ("a.b/rows", None, None, "a.b/rows"),
        ("rows.gz", None, "gzip", "rows"),
        (".txt", None, None, ".txt"),
        ("-", None, None, "-"),
    ],
)
def test_endings(name: str, format: str | None, compression: str | None, rest: str) -> None:
    assert (format_of(name), compression_of(name), stem(name)) == (format, compression, rest)
