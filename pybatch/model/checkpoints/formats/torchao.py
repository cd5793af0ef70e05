"""torchao's tensor classes, as they are flattened into safetensors: for `x.weight`, its parts as `x._weight_qdata`,
`x._weight_scale` and so on, and its class and block size as JSON among the texts of the file's header.
"""

from __future__ import annotations

import json
from typing import Any

import torch
from torch import Tensor

from pybatch.model.checkpoints.formats.floats import float8
from pybatch.model.checkpoints.formats.fp8 import FLOAT8
from pybatch.model.checkpoints.formats.matrices import GroupedRows, Made, grouped, one_if_equal, signed
from pybatch.model.checkpoints.stored import FLOATS, StoredTensors
from pybatch.model.errors import ModelError
from pybatch.model.fields import Fields, short
from pybatch.model.rows import Rows

WIDTHS = tuple(f"int{bits}" for bits in range(1, 9))


class TorchAO:
    def __init__(self, config: Fields, tensors: StoredTensors) -> None:
        self.tensors = tensors

    def holds(self, module: str) -> bool:
        return f"{module}._weight_qdata" in self.tensors

    def matrix(self, module: str) -> Rows:
        kind, data = self._about(f"{module}.weight")
        if f"{module}._weight_act_pre_scale" in self.tensors:
            raise ModelError(f"{data.where}: act_pre_scale scales activations, which is not known here")
        if kind == "Float8Tensor":
            values = self.tensors.rows(f"{module}._weight_qdata", FLOAT8, (None, None))
            scale = self.tensors.whole(f"{module}._weight_scale")
            return float8(values, scale, f"{data.where}: scale", data.pair("block_size"))
        if kind == "Int4Tensor":
            return self._int4(module, data)
        if kind in ("Int8Tensor", "IntxUnpackedToInt8Tensor"):
            return self._int8(module, data)
        raise ModelError(
            f"{data.where}: expected a Float8Tensor, Int4Tensor, Int8Tensor or IntxUnpackedToInt8Tensor of torchao, "
            f"got {short(kind)}, whose bits are laid out for one device"
        )

    def _about(self, name: str) -> tuple[Any, Fields]:
        """The tensor's class, and its attributes."""
        where = f"{self.tensors.directory}: {name}"
        try:
            about = json.loads(self.tensors.metadata.get(name, ""))
            return about["_type"], Fields(dict(about["_data"]), where)
        except (ValueError, TypeError, KeyError, RecursionError):
            raise ModelError(f"{where}: expected its class in the safetensors header, as torchao writes it") from None

    def _int4(self, module: str, data: Fields) -> Rows:
        """w = scale * (code - 8) + zero point (FBGEMM's), two columns in a byte, the first in its lower half."""
        values = self.tensors.rows(f"{module}._weight_qdata", ["I8", "U8"], (None, None))
        n, k = values.shape[0], values.shape[1] * 2
        groups = k // (data.pair("block_size") or (1, k))[1]
        scale = self.tensors.whole(f"{module}._weight_scale", FLOATS, (groups, n)).t()
        zeros = 8 - self.tensors.whole(f"{module}._weight_zero_point", FLOATS, (groups, n)).t().float() / scale.float()

        def codes(rows: slice) -> Tensor:
            octets = values[rows].view(torch.uint8) ^ 0x88  # each code has a sign
            return torch.stack([octets & 15, octets >> 4], dim=-1).flatten(1)

        made = Made(values, codes, (n, k), torch.uint8)
        return grouped(GroupedRows(data.where, 4, made, scale, one_if_equal(zeros)))

    def _int8(self, module: str, data: Fields) -> Rows:
        """Codes of up to 8 bits, each in a byte."""
        values = self.tensors.rows(f"{module}._weight_qdata", ["I8"], (None, None))
        width = Fields(data.mapping("target_dtype"), f"{data.where}: target_dtype").choice("_data", WIDTHS, "int8")
        scale = self.tensors.whole(f"{module}._weight_scale")
        name = f"{module}._weight_zero_point"
        zeros = self.tensors.whole(name, [*FLOATS, "I8"]) if name in self.tensors else None
        bits = int(width.removeprefix("int"))
        return signed(values, scale, zeros, data.where, bits, int8_activations=bool(data.mapping("act_quant_kwargs")))
