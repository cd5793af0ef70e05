"""Tensors as a file that is mapped: processes that have the same model share the pages.

Content begins at a huge page, and the kernel maps the file's cached pages as huge ones where its file system has them
(ext4 from Linux 6.16 on, XFS, tmpfs mounted with huge=advise).
"""

from __future__ import annotations

import json
import mmap
import os
import warnings
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pybatch.machine.huge_pages import ALIGNMENT, HUGE_PAGE
from pybatch.machine.own_files import BadFileError, open_own, write_own

MAGIC = b"pybatch weights 1"  # a new number for every change
PIECE = 8 << 20  # bytes written at a time; small ones would get small pages


def write_tensors(path: Path, key: str, tensors: Sequence[Tensor]) -> None:
    """Writes a CPU's tensors; key: what they are of. Raises OSError."""
    write_own(path, _pieces(key, tensors))


def map_tensors(path: Path, key: str, like: Sequence[Tensor], *, check: bool = True) -> list[Tensor]:
    """The file's tensors, read-only, mapped as long as one of them is held. like: tensors of their shapes and dtypes.
    check: whether to read all of the content and compare its checksum, which takes as long as memory takes.

    The file must stay as it is (write_own replaces files, it does not overwrite them): if another program shortens it
    under the map, the system ends the process with SIGBUS. Raises BadFileError, and OSError.
    """
    file = open_own(path)
    try:
        size = os.fstat(file).st_size
        about = os.pread(file, HUGE_PAGE, 0).rstrip(b"\0")
        expected = _about(key, like)
        found, _, sums = about.partition(b"\n")
        if found != expected:
            raise BadFileError("it holds something else")
        places = list(_places(like))
        end = places[-1] + like[-1].nbytes
        if size != end:
            raise BadFileError(f"expected {end:,} bytes, got {size:,}")
        memory = mmap.mmap(file, size, access=mmap.ACCESS_READ)
    finally:
        os.close(file)
    if hasattr(mmap, "MADV_HUGEPAGE"):  # Linux
        memory.madvise(mmap.MADV_HUGEPAGE)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that it cannot be written to
        content = torch.frombuffer(memory, dtype=torch.uint8)
    tensors = [
        content[at : at + each.nbytes].view(each.dtype).view(each.shape) for at, each in zip(places, like, strict=True)
    ]
    if check and sums != _sums(tensors):
        raise BadFileError("its checksum is wrong")
    return tensors


def _pieces(key: str, tensors: Sequence[Tensor]) -> Iterator[Any]:
    about = b"\n".join((_about(key, tensors), _sums(tensors)))
    if len(about) >= HUGE_PAGE:
        raise OSError(f"{len(tensors):,} tensors are too many for one file")
    yield about
    at = len(about)
    for start, tensor in zip(_places(tensors), tensors, strict=True):
        yield bytes(start - at)
        content = tensor.contiguous().view(-1).view(torch.uint8).numpy()
        for first in range(0, tensor.nbytes, PIECE):
            yield content[first : first + PIECE].data
        at = start + tensor.nbytes


def _about(key: str, tensors: Sequence[Tensor]) -> bytes:
    kinds = [(str(tensor.dtype), *tensor.shape) for tensor in tensors]
    return b"%s %s %s" % (MAGIC, key.encode(), json.dumps(kinds).encode())


def _places(tensors: Sequence[Tensor]) -> Iterator[int]:
    at = HUGE_PAGE
    for tensor in tensors:
        yield at
        at += -(-tensor.nbytes // ALIGNMENT) * ALIGNMENT


def _sums(tensors: Sequence[Tensor]) -> bytes:
    """Against damage, not forgery. Words are added up, since that takes no longer than reading them; a CRC of all sums
    finds what no single one can, such as two of them exchanged."""
    sums = [_sum(tensor) for tensor in tensors]
    return json.dumps([zlib.crc32(json.dumps(sums).encode()), *sums]).encode()


def _sum(tensor: Tensor) -> int:
    content = tensor.contiguous().view(-1).view(torch.uint8)
    words = content.numel() // 8 * 8
    return int(content[:words].view(torch.int64).sum()) + int(content[words:].sum())
