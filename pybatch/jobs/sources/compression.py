"""Reads gzip and Zstandard files."""

from __future__ import annotations

import io
import sys
import zlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol, cast

from pybatch.jobs.sources.faults import missing_package, unreadable
from pybatch.jobs.sources.formats import compression_of

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

# A piece of compressed bytes this short comes to 1 MiB (gzip) or 32 MiB (Zstandard) at most, whatever it holds.
PIECE = 1024

SKIPPABLE = tuple(bytes([kind]) + b"\x2a\x4d\x18" for kind in range(0x50, 0x60))  # frames without data, pzstd's first
MAGIC = {"gzip": (b"\x1f\x8b",), "zstd": (b"\x28\xb5\x2f\xfd", *SKIPPABLE)}  # none begins a line of text


class Decompressor(Protocol):
    """Of one member of a gzip file, or one frame of a Zstandard file."""

    eof: bool
    unused_data: bytes

    def decompress(self, data: bytes, /) -> bytes: ...


def decompressor(compression: str, name: str) -> Callable[[], Decompressor]:
    """Makes decompressors. Raises ValueError, with the file's name, if the library is not installed."""
    if compression == "gzip":
        return cast(Callable[[], Decompressor], lambda: zlib.decompressobj(wbits=31))
    if sys.version_info >= (3, 14):
        from compression.zstd import ZstdDecompressor

        return ZstdDecompressor
    try:
        import zstandard
    except ModuleNotFoundError:
        raise missing_package(name, "zstandard", "zstd") from None
    return cast(Callable[[], Decompressor], lambda: zstandard.ZstdDecompressor().decompressobj())


def decompressed(file: io.BufferedReader, name: str) -> io.BufferedReader:
    """The file's bytes, decompressed if they are compressed, whatever the file is called.

    Raises OSError, with the name, if it ends in .gz or .zst and the file is none; reading does where it is damaged.
    """
    head = file.peek(4)
    compression = next((kind for kind, magic in MAGIC.items() if head.startswith(magic)), None)
    expected = compression_of(name)
    if expected not in (None, compression):
        raise unreadable(name, f"not a {expected} file")
    if compression is None:
        return file
    return io.BufferedReader(_Decompressed(file, name, decompressor(compression, name)), 1 << 16)


class _Decompressed(io.RawIOBase):
    def __init__(self, file: io.BufferedReader, name: str, new: Callable[[], Decompressor]) -> None:
        self._file, self._name, self._new = file, name, new
        self._member = new()
        self._ready = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        while not self._ready:
            piece = self._next_piece()
            if not piece:
                return 0
            try:
                self._ready = memoryview(self._member.decompress(piece))
            except Exception as error:  # each library has its own
                raise unreadable(self._name, f"damaged: {error}") from error
        target = memoryview(buffer).cast("B")
        count = min(len(target), len(self._ready))
        target[:count] = self._ready[:count]
        self._ready = self._ready[count:]
        return count

    def _next_piece(self) -> bytes:
        """Compressed bytes for the member under way; none at the end of the last one."""
        if not self._member.eof:
            piece = self._file.read1(PIECE)
            if not piece:
                raise unreadable(self._name, "damaged: it ends in the middle of the compressed data")
            return piece
        piece = self._member.unused_data
        while not (piece := piece.lstrip(b"\0")):  # zeros may fill a block of a tape
            piece = self._file.read1(PIECE)
            if not piece:
                return piece
        self._member = self._new()
        return piece

    def close(self) -> None:
        self._file.close()
        super().close()
