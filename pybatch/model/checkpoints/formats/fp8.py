"""fp8 as DeepSeek, Qwen and Ministral ship it: `weight` [N, K] float8 and `weight_scale_inv`, which is multiplied by in
spite of its name, for each block of `weight_block_size` (128 by 128) or one for all. FBGEMM's `weight_scale` is that
of rows.
"""

from __future__ import annotations

from pybatch.model.checkpoints.formats.floats import float8
from pybatch.model.checkpoints.stored import FLOATS, StoredTensors
from pybatch.model.fields import Fields
from pybatch.model.rows import Rows

FLOAT8 = ("F8_E4M3", "F8_E5M2")


class FP8:
    def __init__(self, config: Fields, tensors: StoredTensors) -> None:
        self.tensors = tensors
        self.block = config.pair("weight_block_size")

    def holds(self, module: str) -> bool:
        return self._scale(module) in self.tensors and f"{module}.weight" in self.tensors

    def matrix(self, module: str) -> Rows:
        values = self.tensors.rows(f"{module}.weight", FLOAT8, (None, None))
        scale = self.tensors.whole(self._scale(module), (*FLOATS, "F8_E8M0"))
        return float8(values, scale, f"{self.tensors.directory}: {self._scale(module)}", self.block)

    def _scale(self, module: str) -> str:
        inverse = f"{module}.weight_scale_inv"
        return inverse if inverse in self.tensors else f"{module}.weight_scale"
