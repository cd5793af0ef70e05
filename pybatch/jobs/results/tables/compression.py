"""Writes gzip and Zstandard files: the same bytes each time."""

from __future__ import annotations

import gzip
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO, cast


@contextmanager
def compressing(file: BinaryIO, compression: str | None) -> Iterator[BinaryIO]:
    """A file whose bytes go, compressed, into another one, which stays open. compression: gzip, zstd or None."""
    if compression is None:
        yield file
    elif compression == "gzip":
        with gzip.GzipFile(filename="", mode="wb", compresslevel=6, fileobj=file, mtime=0) as inner:
            yield cast(BinaryIO, inner)
    elif sys.version_info >= (3, 14):
        from compression import zstd

        options = {zstd.CompressionParameter.checksum_flag: 1}
        with zstd.ZstdFile(file, "wb", options=options) as inner:
            yield cast(BinaryIO, inner)
    else:
        import zstandard

        with zstandard.ZstdCompressor(write_checksum=True).stream_writer(file, closefd=False) as inner:
            yield cast(BinaryIO, inner)
