"""NVIDIA's ModelOpt: `weight` float8 [N, K] with one `weight_scale` (FP8), or `weight` uint8 [N, K / 2] of two float4
each with a float8 `weight_scale` for 16 columns, times one `weight_scale_2` (NVFP4)."""

from __future__ import annotations

from pybatch.model.checkpoints.formats.floats import float8, nvfp4
from pybatch.model.checkpoints.formats.fp8 import FLOAT8
from pybatch.model.checkpoints.stored import FLOATS, StoredTensors
from pybatch.model.errors import ModelError
from pybatch.model.fields import Fields
from pybatch.model.rows import Rows

GROUP = 16


class ModelOpt:
    def __init__(self, config: Fields, tensors: StoredTensors) -> None:
        self.tensors = tensors

    def holds(self, module: str) -> bool:
        return f"{module}.weight_scale" in self.tensors

    def matrix(self, module: str) -> Rows:
        where = f"{self.tensors.directory}: {module}"
        if f"{module}.pre_quant_scale" in self.tensors:
            raise ModelError(f"{where}: pre_quant_scale scales activations, which is not known here")
        name = f"{module}.weight_scale_2"
        if name not in self.tensors:
            values = self.tensors.rows(f"{module}.weight", FLOAT8, (None, None))
            return float8(values, self.tensors.whole(f"{module}.weight_scale"), f"{where}.weight_scale")
        codes = self.tensors.rows(f"{module}.weight", ["U8"], (None, None))
        shape = codes.shape[0], codes.shape[1] * 2 // GROUP
        scales = self.tensors.rows(f"{module}.weight_scale", ["F8_E4M3"], shape)
        whole = self.tensors.whole(name, FLOATS).float()
        return nvfp4(codes, lambda rows: scales[rows].float() * whole, GROUP, where)
