"""The GGUF file format (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md), versions 2 and 3.

gguf.GGUFReader makes several numpy arrays for every string of a vocabulary, which takes seconds; this reads the header
into plain Python values instead, and leaves the tensors' data to numpy and gguf.quants.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import GGMLQuantizationType, quants
from gguf.constants import GGML_QUANT_SIZES
from torch import Tensor

from pybatch import ops
from pybatch.model.checkpoints.file_rows import FileRows
from pybatch.model.checkpoints.files import unreadable
from pybatch.model.checkpoints.requantized import RequantizedRows
from pybatch.model.errors import ModelError
from pybatch.model.fields import short
from pybatch.model.rows import MatrixStack, Rows

SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
STRING, ARRAY = 8, 9
MAX_DIMENSIONS = 4
MAX_ARRAY = 1 << 24  # values of one metadata array; vocabularies have less than a million
FLOATS = {
    GGMLQuantizationType.F32: torch.float32,
    GGMLQuantizationType.F16: torch.float16,
    GGMLQuantizationType.BF16: torch.bfloat16,
}


@dataclass(frozen=True, slots=True)
class TensorInfo:
    shape: tuple[int, ...]  # rows first, as in torch; the file has it the other way round
    kind: GGMLQuantizationType
    offset: int  # in the file

    @property
    def data_shape(self) -> tuple[int, ...]:
        """The shape of the tensor as bytes."""
        block, size = GGML_QUANT_SIZES[self.kind]
        return (*self.shape[:-1], self.shape[-1] // block * size)

    @property
    def end(self) -> int:
        return self.offset + prod(self.data_shape)


@dataclass(frozen=True, slots=True)
class QuantizedRows:
    """A matrix of blocks that the kernels take, or several to be flattened, of which rows are dequantised to float32
    when asked for."""

    blocks: Rows  # [N, bytes of a row] uint8
    block_type: str
    shape: Sequence[int]
    dtype: torch.dtype = torch.float32

    def __getitem__(self, rows: slice) -> Tensor:
        data = self.blocks[rows]
        count = len(data)
        packed = ops.pack_gguf(data, self.block_type)
        out = torch.empty(count, self.shape[1], dtype=torch.float32)
        return ops.embedding(torch.arange(count), packed, out, count)

    def flattened(self) -> QuantizedRows:
        assert isinstance(self.blocks, MatrixStack)
        blocks = self.blocks.flattened()
        return replace(self, blocks=blocks, shape=(blocks.shape[0], self.shape[-1]))

    def release(self, rows: slice) -> None:
        self.blocks.release(rows)


class GGUFFile:
    """metadata: every key and value of the header; tensors: what is where. Data is mapped when asked for.

    Raises ModelError if the header, or where it says the tensors are, is not as the format has it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.metadata: dict[str, Any] = {}
        self.tensors: dict[str, TensorInfo] = {}
        try:
            with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as header:
                self._bytes, self._at = header, 0
                try:
                    self._read_header()
                finally:
                    del self._bytes
        except ModelError:
            raise
        except (OSError, ValueError) as error:  # ValueError: an empty file cannot be mapped
            raise unreadable(path, "a GGUF file", error) from error
        end = max((info.end for info in self.tensors.values()), default=0)
        if end > path.stat().st_size:
            raise ModelError(f"{path}: expected {end} bytes, found {path.stat().st_size}: the file is cut short")

    def rows(self, name: str) -> Rows:
        info = self.tensors[name]
        dtype = FLOATS.get(info.kind)
        if dtype is None and (info.kind not in quants._type_traits or len(info.shape) not in (2, 3)):
            raise ModelError(
                f"{self.path}: tensor {short(name)} is {info.kind.name} of {len(info.shape)} dimensions, which "
                "gguf.quants cannot dequantise"
            )
        rows: Rows = FileRows(self.path, dtype or torch.uint8, info.shape if dtype else info.data_shape, info.offset)
        if dtype:
            return rows
        if info.kind.name in ops.GGUF_BLOCKS:
            return QuantizedRows(rows, info.kind.name, info.shape)
        return RequantizedRows(rows, info.kind, info.shape)

    def _read_header(self) -> None:
        if self._bytes[:4] != b"GGUF":
            raise unreadable(self.path, "a GGUF file", ValueError("it does not begin with 'GGUF'"))
        self._at = 4
        version = self._scalar("<I")
        if version not in (2, 3):
            raise ModelError(f"{self.path}: expected little-endian GGUF version 2 or 3, got version {version}")
        tensor_count, metadata_count = self._scalar("<Q"), self._scalar("<Q")
        self._expect_left(tensor_count, 24, "tensors")
        self._expect_left(metadata_count, 13, "metadata entries")
        for _ in range(metadata_count):
            key = self._string()
            if key in self.metadata:
                raise self._damaged(f"the key {short(key)} twice")
            self.metadata[key] = self._value(self._scalar("<I"))
        alignment = self.metadata.get("general.alignment", 32)
        if not isinstance(alignment, int) or not 0 < alignment <= 1 << 20 or alignment & (alignment - 1):
            raise ModelError(f"{self.path}: general.alignment: expected a power of two, got {short(alignment)}")
        infos = [self._tensor_info() for _ in range(tensor_count)]
        start = -(-self._at // alignment) * alignment
        for name, info in infos:
            if name in self.tensors:
                raise self._damaged(f"the tensor {short(name)} twice")
            if info.offset % alignment:
                raise self._damaged(f"{short(name)} at {info.offset}, which is no multiple of {alignment}")
            self.tensors[name] = replace(info, offset=start + info.offset)

    def _tensor_info(self) -> tuple[str, TensorInfo]:
        name = self._string()
        dimensions = self._scalar("<I")
        if not 1 <= dimensions <= MAX_DIMENSIONS:
            raise self._damaged(f"{short(name)} with {dimensions} dimensions")
        shape = tuple(self._scalar("<Q") for _ in range(dimensions))[::-1]
        kind = self._scalar("<I")
        if kind not in GGMLQuantizationType._value2member_map_:
            raise ModelError(
                f"{self.path}: tensor {short(name)} is of type {kind}, which the gguf package does not know"
            )
        info = TensorInfo(shape, GGMLQuantizationType(kind), self._scalar("<Q"))
        if 0 in shape or shape[-1] % GGML_QUANT_SIZES[info.kind][0]:
            raise self._damaged(f"{short(name)} of shape {short(list(shape))} as {info.kind.name}")
        return name, info

    def _scalar(self, form: str) -> Any:
        size = struct.calcsize(form)
        self._expect_left(1, size, "value")
        value = struct.unpack_from(form, self._bytes, self._at)[0]
        self._at += size
        return value

    def _string(self) -> str:
        length = self._scalar("<Q")
        self._expect_left(length, 1, "bytes of text")
        self._at += length
        return self._bytes[self._at - length : self._at].decode("utf-8")

    def _value(self, kind: int) -> Any:
        if kind == STRING:
            return self._string()
        if kind in SCALARS:
            return self._scalar(SCALARS[kind])
        if kind != ARRAY:
            raise self._damaged(f"metadata of type {kind}")
        kind, count = self._scalar("<I"), self._scalar("<Q")
        if count > MAX_ARRAY:
            raise self._damaged(f"an array of {count:,} values")
        if kind == STRING:
            self._expect_left(count, 8, "texts")
            return [self._string() for _ in range(count)]
        if kind not in SCALARS:
            raise self._damaged(f"an array of type {kind}")
        form = np.dtype(SCALARS[kind])
        self._expect_left(count, form.itemsize, "values")
        values = np.frombuffer(self._bytes[self._at : self._at + count * form.itemsize], form)
        self._at += values.nbytes
        return values.tolist()

    def _expect_left(self, count: int, size: int, what: str) -> None:
        """Raises ModelError unless the file still has so many things of so many bytes: before memory is taken for
        them."""
        left = len(self._bytes) - self._at
        if count * size > left:
            raise self._damaged(f"{count:,} {what} where {left:,} bytes are left")

    def _damaged(self, found: str) -> ModelError:
        return ModelError(f"{self.path}: the GGUF header is damaged or cut short: it has {found}")
