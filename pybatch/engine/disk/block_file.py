"""One KV block as a file: what it is of, a checksum, and the block's bytes as they are in the pool."""

from __future__ import annotations

import os
import zlib
from pathlib import Path

from pybatch.engine.scheduling.block_pool import BlockKey
from pybatch.machine.own_files import BadFileError, open_own, write_own

FORMAT = 1  # of the files: a new number for every change


def read_block(path: Path, key: BlockKey, block: memoryview) -> bool:
    """Reads a file into `block`, whose content is lost where the file turns out to be bad. Returns whether there is a
    file. Raises BadFileError, and OSError.

    It is read, not mapped: that takes a fraction of the time, since no page is a fault of its own, and a file that is
    cut or a disk that fails meanwhile is an error, not a SIGBUS.
    """
    try:
        file = open_own(path)
    except FileNotFoundError:
        return False
    try:
        about = bytearray(len(_about(key, 0)))
        size, found = len(about) + block.nbytes, os.fstat(file).st_size
        if found != size or os.readv(file, [about, block]) != size:
            raise BadFileError(f"expected {size:,} bytes, got {found:,}")
    finally:
        os.close(file)
    if about != _about(key, _checksum(key, block)):
        raise BadFileError("its checksum or its tokens are wrong")
    return True


def write_block(path: Path, key: BlockKey, block: bytes, *, used: int) -> None:
    """Writes a file that its owner alone may read; see write_own. Nobody waits until the disk has it, since one that a
    power cut has damaged is found out. used: nanoseconds since 1970. Raises OSError."""
    write_own(path, (_about(key, _checksum(key, block)), block), used=used)


def num_bytes(key: BlockKey, block: bytes) -> int:
    """Of the file."""
    return len(_about(key, 0)) + len(block)


def _checksum(key: BlockKey, block: bytes | memoryview) -> int:
    """Against damage, not forgery: a CRC is read at the speed of memory, and finds every burst of up to 32 bits."""
    return zlib.crc32(block, zlib.crc32(key.digest + key.prefix + key.tokens))


def _about(key: BlockKey, checksum: int) -> bytes:
    return b"pybatch KV block" + checksum.to_bytes(4, "little") + key.digest + key.prefix.ljust(16, b"\0") + key.tokens
