"""Finds the source that fits what a job is given."""

from __future__ import annotations

import os

from pybatch.jobs.rows import Source
from pybatch.jobs.sources.byte_file import ByteFile
from pybatch.jobs.sources.file_source import FileSource
from pybatch.jobs.sources.formats import INPUT_FORMATS, format_of


def open_source(data: str | os.PathLike[str], format: str | None = None) -> Source:
    """Opens what a job reads: the path of a file, or "-" for standard input.

    format: one of INPUT_FORMATS; None goes by the ending of the name, and takes an unknown ending as jsonl. Raises
    OSError, with the path, if it cannot be read, ValueError for another format.
    """
    if format is not None and format not in INPUT_FORMATS:
        raise ValueError(f"format: expected one of {', '.join(INPUT_FORMATS)}, got {format!r}")
    path = os.fspath(data)
    return FileSource(ByteFile(path), format or format_of(path) or "jsonl")
