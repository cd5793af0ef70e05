"""The tensors of a directory's safetensors files, under the names that they have there."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from pybatch.model.checkpoints.file_rows import FileRows
from pybatch.model.checkpoints.files import unreadable
from pybatch.model.errors import ModelError

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E8M0": torch.float8_e8m0fnu,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
}
FLOATS = ("F32", "F16", "BF16")


@dataclass(frozen=True, slots=True)
class Stored:
    """What a tensor is, and where."""

    path: Path
    dtype: str  # as safetensors names it
    shape: tuple[int, ...]
    offset: int  # in the file


class StoredTensors(Mapping[str, Stored]):
    """What is where; tensors themselves are mapped when asked for and unmapped when dropped.

    read: the names of those that were asked for. metadata: the texts in the headers of the files.
    """

    def __init__(self, directory: Path, stored: Mapping[str, Stored], metadata: Mapping[str, str]) -> None:
        self.directory, self.metadata = directory, metadata
        self.read: set[str] = set()
        self._stored = dict(stored)

    def __getitem__(self, name: str) -> Stored:
        return self._stored[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._stored)

    def __len__(self) -> int:
        return len(self._stored)

    def alias(self, name: str, known: str) -> None:
        """Gives a tensor another name."""
        self._stored[name] = self._stored[known]

    def put_below(self, prefix: str) -> None:
        """Gives all tensors names below this one."""
        self._stored = {f"{prefix}.{name}": stored for name, stored in self._stored.items()}

    def rows(self, name: str, dtypes: Sequence[str] = FLOATS, shape: Sequence[int | None] | None = None) -> FileRows:
        """A tensor. Raises ModelError if there is none, or it is none of these types, or not of this shape, where None
        is any size."""
        if name not in self:
            raise ModelError(f"{self.directory}: expected the tensor {name!r}, which is not there")
        stored = self[name]
        self.read.add(name)
        if 0 in stored.shape:
            raise ModelError(
                f"{self.directory}: tensor {name!r} is empty, of shape {list(stored.shape)}: the checkpoint was saved "
                "without it, as ranks save what others hold; expected one with all its weights"
            )
        if stored.dtype not in dtypes:
            raise ModelError(
                f"{self.directory}: tensor {name!r} is {stored.dtype}; expected one of {', '.join(dtypes)}"
            )
        if shape is not None and not _fits(stored.shape, shape):
            expected = ", ".join("any" if size is None else str(size) for size in shape)
            raise ModelError(f"{self.directory}: {name}: expected shape [{expected}], got {list(stored.shape)}")
        try:
            return FileRows(stored.path, DTYPES[stored.dtype], stored.shape, stored.offset)
        except (OSError, ValueError) as error:  # ValueError: the file has become shorter
            raise unreadable(stored.path, "a safetensors file", error) from error

    def whole(self, name: str, dtypes: Sequence[str] = FLOATS, shape: Sequence[int | None] | None = None) -> Tensor:
        """All of a tensor, as a view of the map that nobody may write to. Raises as rows does."""
        return self.rows(name, dtypes, shape)[:]


def read_header(path: Path) -> tuple[dict[str, Stored], dict[str, str]]:
    """The tensors and the texts of a file in the format of https://huggingface.co/docs/safetensors."""
    try:
        with safe_open(path, framework="pt"):  # checks that the header and the file's size are right
            pass
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length))
        texts = header.pop("__metadata__", {})
        stored = {
            name: Stored(path, found["dtype"], tuple(found["shape"]) or (1,), 8 + length + found["data_offsets"][0])
            for name, found in header.items()
        }
    except (SafetensorError, OSError, RuntimeError, ValueError) as error:
        raise unreadable(path, "a safetensors file", error) from error
    return stored, texts


def _fits(shape: Sequence[int], expected: Sequence[int | None]) -> bool:
    return len(shape) == len(expected) and all(want in (None, size) for size, want in zip(shape, expected, strict=True))
