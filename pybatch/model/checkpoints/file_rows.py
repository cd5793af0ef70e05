"""Tensors in a file, of which a few rows at a time are in memory."""

from __future__ import annotations

import mmap
from copy import copy
from math import prod
from pathlib import Path

import torch
from torch import Tensor

CAN_RELEASE = hasattr(mmap, "MADV_DONTNEED")  # Linux, macOS


class FileRows:
    """A tensor of a file, mapped until it is dropped. Slices are views of the map: nobody may write to them."""

    def __init__(self, path: Path, dtype: torch.dtype, shape: tuple[int, ...], offset: int) -> None:
        self.shape, self.dtype = shape, dtype
        size, self._lead = prod(shape) * dtype.itemsize, offset % mmap.ALLOCATIONGRANULARITY
        if not size:
            self._rows = torch.empty(shape, dtype=dtype)
            return
        with path.open("rb") as file:
            # Private, since torch wants memory that can be written to.
            self._map = mmap.mmap(file.fileno(), self._lead + size, access=mmap.ACCESS_COPY, offset=offset - self._lead)
        content = torch.frombuffer(self._map, dtype=torch.uint8, offset=self._lead)
        if offset % dtype.itemsize:  # which safetensors files of old may have
            content = content.clone()
        self._rows = content.view(dtype).view(shape)

    def __getitem__(self, rows: slice) -> Tensor:
        return self._rows[rows]

    def flattened(self) -> FileRows:
        """Of several matrices, the rows one below the other."""
        flat = copy(self)
        flat._rows = self._rows.flatten(0, 1)
        flat.shape = tuple(flat._rows.shape)
        return flat

    def release(self, rows: slice) -> None:
        """Gives the pages of these rows back to the system, which reads them again should they be asked for."""
        if CAN_RELEASE and self._rows.numel():
            row = self._rows[0].nbytes
            begin = (self._lead + rows.start * row) // mmap.PAGESIZE * mmap.PAGESIZE
            self._map.madvise(mmap.MADV_DONTNEED, begin, self._lead + rows.stop * row - begin)
