"""One KV block as a file: what it is of, a checksum, and the block's bytes as they are in the pool."""

from __future__ import annotations

import os
import stat
import tempfile
import zlib
from contextlib import suppress
from pathlib import Path

from pybatch.engine.scheduling.block_pool import BlockKey

FORMAT = 1  # of the files: a new number for every change

TEMPORARY = ".tmp"  # what ends the name of a file that is being written


class BadFileError(Exception):
    """A file does not hold what its name says."""


def read_block(path: Path, key: BlockKey, block: memoryview) -> bool:
    """Reads a file into `block`, whose content is lost where the file turns out to be bad. Returns whether there is a
    file. Raises BadFileError, and OSError.

    It is read, not mapped: that takes a fraction of the time, since no page is a fault of its own, and a file that is
    cut or a disk that fails meanwhile is an error, not a SIGBUS.
    """
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        return False
    try:
        found = os.fstat(file)
        if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid():
            raise BadFileError("it is not a file of this user")
        about = bytearray(len(_about(key, 0)))
        size = len(about) + block.nbytes
        if found.st_size != size or os.readv(file, [about, block]) != size:
            raise BadFileError(f"expected {size:,} bytes, got {found.st_size:,}")
    finally:
        os.close(file)
    if about != _about(key, _checksum(key, block)):
        raise BadFileError("its checksum or its tokens are wrong")
    return True


def write_block(path: Path, key: BlockKey, block: bytes, *, used: int) -> None:
    """Writes a file that its owner alone may read. It is there as a whole or not at all; nobody waits until the disk
    has it, since one that a power cut has damaged is found out. used: nanoseconds since 1970. Raises OSError."""
    file, name = tempfile.mkstemp(suffix=TEMPORARY, dir=path.parent)
    try:
        with open(file, "wb", buffering=0) as stream:
            for piece in (_about(key, _checksum(key, block)), block):
                left = memoryview(piece)
                while left:
                    left = left[stream.write(left) :]
        os.utime(name, ns=(used, used))
        os.replace(name, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(name)
        raise


def num_bytes(key: BlockKey, block: bytes) -> int:
    """Of the file."""
    return len(_about(key, 0)) + len(block)


def _checksum(key: BlockKey, block: bytes | memoryview) -> int:
    """Against damage, not forgery: a CRC is read at the speed of memory, and finds every burst of up to 32 bits."""
    return zlib.crc32(block, zlib.crc32(key.digest + key.prefix + key.tokens))


def _about(key: BlockKey, checksum: int) -> bytes:
    return b"pybatch KV block" + checksum.to_bytes(4, "little") + key.digest + key.prefix.ljust(16, b"\0") + key.tokens
