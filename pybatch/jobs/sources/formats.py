"""Which format a file has, by the ending of its name."""

from __future__ import annotations

from pathlib import PurePath

INPUT_FORMATS = ("jsonl", "text")

ENDINGS = {".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "jsonl", ".txt": "text"}


def format_of(name: str) -> str | None:
    """The format that a file's name stands for; None if its ending is not known."""
    return ENDINGS.get(PurePath(name).suffix.lower())
