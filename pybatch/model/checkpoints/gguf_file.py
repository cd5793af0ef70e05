"""The GGUF file format (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md), versions 2 and 3.

gguf.GGUFReader makes several numpy arrays for every string of a vocabulary, which takes seconds; this reads the header
into plain Python values instead, and leaves the tensors' data to numpy and gguf.quants.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from gguf import GGMLQuantizationType, quants
from gguf.constants import GGML_QUANT_SIZES
from torch import Tensor

from pybatch import ops
from pybatch.model.errors import ModelError

SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
STRING, ARRAY = 8, 9
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


@dataclass(frozen=True, slots=True)
class QuantizedRows:
    """A quantised matrix, of which rows are dequantised to float32 when asked for."""

    data: npt.NDArray[np.uint8]
    kind: GGMLQuantizationType
    shape: Sequence[int]
    dtype: torch.dtype = torch.float32

    @property
    def block_type(self) -> str:
        return self.kind.name

    @property
    def blocks(self) -> Tensor:
        return torch.from_numpy(self.data)

    def __getitem__(self, rows: slice) -> Tensor:
        data = self.data[rows]
        if self.block_type not in ops.GGUF_BLOCKS:
            return torch.from_numpy(quants.dequantize(data, self.kind))
        # The same bits, in less than half the time.
        count = len(data)
        packed = ops.pack_gguf(torch.from_numpy(data), self.block_type)
        return ops.embedding(torch.arange(count), packed, torch.empty(count, self.shape[1]), count)


class GGUFFile:
    """metadata: every key and value of the header; tensors: what is where. Data is mapped when asked for."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.metadata: dict[str, Any] = {}
        self.tensors: dict[str, TensorInfo] = {}
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as header:
            self._bytes, self._at = header, 0
            try:
                self._read_header()
            except (struct.error, UnicodeDecodeError, KeyError) as error:
                raise ModelError(f"{path}: the GGUF header is damaged or cut short ({error})") from error
            finally:
                del self._bytes
        end = max((info.offset + int(np.prod(info.data_shape)) for info in self.tensors.values()), default=0)
        if end > path.stat().st_size:
            raise ModelError(f"{path}: expected {end} bytes, found {path.stat().st_size}: the file is cut short")

    def rows(self, name: str, turned_heads: int | None = None) -> Tensor | QuantizedRows:
        """A tensor; with turned_heads, a q or k projection of so many heads whose rows lie as ggml's "llama" wants
        them, with the pairs that rotate side by side, put back in the order of Hugging Face."""
        info = self.tensors[name]
        data: npt.NDArray[np.uint8] = np.memmap(
            self.path, np.uint8, "c", info.offset, info.data_shape
        )  # "c": torch wants it writable
        if turned_heads is not None:
            row_bytes = data.shape[1:] if data.ndim > 1 else (GGML_QUANT_SIZES[info.kind][1],)
            data = data.reshape(turned_heads, -1, 2, *row_bytes).swapaxes(1, 2).reshape(data.shape)
        if info.kind in FLOATS:
            return torch.from_numpy(data).view(FLOATS[info.kind])
        if info.kind not in quants._type_traits:
            raise ModelError(f"{self.path}: tensor {name} is {info.kind.name}, which gguf.quants cannot dequantise")
        return QuantizedRows(data, info.kind, info.shape)

    def _read_header(self) -> None:
        if self._bytes[:4] != b"GGUF":
            raise ModelError(f"{self.path}: expected a GGUF file, but it does not begin with 'GGUF'")
        self._at = 4
        version = self._scalar("<I")
        if version not in (2, 3):
            raise ModelError(f"{self.path}: expected little-endian GGUF version 2 or 3, got version {version}")
        tensor_count, metadata_count = self._scalar("<Q"), self._scalar("<Q")
        for _ in range(metadata_count):
            key = self._string()
            self.metadata[key] = self._value(self._scalar("<I"))
        infos = [self._tensor_info() for _ in range(tensor_count)]
        alignment = self.metadata.get("general.alignment", 32)
        start = -(-self._at // alignment) * alignment
        self.tensors = {name: TensorInfo(shape, kind, start + offset) for name, shape, kind, offset in infos}

    def _tensor_info(self) -> tuple[str, tuple[int, ...], GGMLQuantizationType, int]:
        name = self._string()
        shape = tuple(self._scalar("<Q") for _ in range(self._scalar("<I")))[::-1]
        kind = self._scalar("<I")
        if kind not in GGMLQuantizationType._value2member_map_:
            raise ModelError(f"{self.path}: tensor {name} is of type {kind}, which the gguf package does not know")
        return name, shape, GGMLQuantizationType(kind), self._scalar("<Q")

    def _scalar(self, form: str) -> Any:
        value = struct.unpack_from(form, self._bytes, self._at)[0]
        self._at += struct.calcsize(form)
        return value

    def _string(self) -> str:
        length = self._scalar("<Q")
        self._at += length
        return self._bytes[self._at - length : self._at].decode("utf-8")

    def _value(self, kind: int) -> Any:
        if kind == STRING:
            return self._string()
        if kind != ARRAY:
            return self._scalar(SCALARS[kind])
        kind, count = self._scalar("<I"), self._scalar("<Q")
        if kind in (STRING, ARRAY):
            return [self._value(kind) for _ in range(count)]
        form = np.dtype(SCALARS[kind])
        values = np.frombuffer(self._bytes[self._at : self._at + count * form.itemsize], form)
        self._at += values.nbytes
        return values.tolist()
