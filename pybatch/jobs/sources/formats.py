"""Which format a file has, by the ending of its name."""

from __future__ import annotations

import os

INPUT_FORMATS = ("jsonl", "json", "csv", "tsv", "text", "parquet")

ENDINGS = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "tsv",
    ".txt": "text",
    ".parquet": "parquet",
}
COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}


def format_of(name: str) -> str | None:
    """The format that a file's name stands for, whether compressed or not; None if its ending is not known."""
    return ENDINGS.get(os.path.splitext(uncompressed(name))[1].lower())


def compression_of(name: str) -> str | None:
    """gzip or zstd where the name ends so."""
    return COMPRESSIONS.get(os.path.splitext(name)[1].lower())


def uncompressed(name: str) -> str:
    return name if compression_of(name) is None else os.path.splitext(name)[0]
