"""Which format a file has, by the ending of its name."""

from __future__ import annotations

from pathlib import PurePath

INPUT_FORMATS = ("jsonl", "csv", "tsv", "text", "parquet")

ENDINGS = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".csv": "csv",
    ".tsv": "tsv",
    ".txt": "text",
    ".parquet": "parquet",
}
COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}


def format_of(name: str) -> str | None:
    """The format that a file's name stands for, whether compressed or not; None if its ending is not known."""
    path = PurePath(name)
    if compression_of(name) is not None:
        path = path.with_suffix("")
    return ENDINGS.get(path.suffix.lower())


def compression_of(name: str) -> str | None:
    """gzip or zstd where the name ends so."""
    return COMPRESSIONS.get(PurePath(name).suffix.lower())
