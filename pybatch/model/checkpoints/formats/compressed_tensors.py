"""compressed-tensors, as llm-compressor writes it. What a module has tells how it is quantised:

- `weight_packed` int32 [N, K * bits / 32], codes of columns from the lowest bits up, each with half its range added, so
  does `weight_zero_point`, packed likewise along N; `weight_g_idx` where groups of columns are mixed (W4A16, W8A16);
- `weight` int8 [N, K] (W8A8), float8 (fp8), with a `weight_scale` of the tensor, of rows, of groups or of blocks;
- `weight_packed` uint8 [N, K / 2], float4 with float8 scales of 16 columns and one of the tensor by which they were
  multiplied (NVFP4), or exponents as scales of 32 columns (MXFP4).

https://github.com/vllm-project/compressed-tensors
"""

from __future__ import annotations

import torch
from torch import Tensor

from pybatch.model.checkpoints.file_rows import FileRows
from pybatch.model.checkpoints.formats.floats import float8, mxfp4, nvfp4
from pybatch.model.checkpoints.formats.fp8 import FLOAT8
from pybatch.model.checkpoints.formats.matrices import GroupedRows, Made, grouped, groups_of, one_if_equal, signed
from pybatch.model.checkpoints.formats.words import unpack
from pybatch.model.checkpoints.stored import FLOATS, StoredTensors
from pybatch.model.errors import ModelError
from pybatch.model.fields import Fields
from pybatch.model.rows import Rows

BITS = (2, 4, 8)


class CompressedTensors:
    def __init__(self, config: Fields, tensors: StoredTensors) -> None:
        self.tensors = tensors
        kinds = {config.get("format"), config.mapping("sparsity_config").get("format")}
        sparse = [kind for kind in kinds if isinstance(kind, str) and ("sparse" in kind or "marlin" in kind)]
        if sparse:
            raise ModelError(f"{config.where}: expected dense weights, got {sparse[0]}")
        if config.mapping("transform_config").get("config_groups"):
            raise ModelError(f"{config.where}: transform_config turns activations, which is not known here")
        groups = [Fields(group, config.where) for group in config.mapping("config_groups").values()]
        self.has_activations = any(group.mapping("input_activations") for group in groups)
        blocks = [Fields(group.mapping("weights"), config.where).pair("block_structure") for group in groups]
        self.block = next((block for block in blocks if block), None)

    def holds(self, module: str) -> bool:
        return f"{module}.weight_scale" in self.tensors

    def matrix(self, module: str) -> Rows:
        name = f"{module}.weight_packed"
        if name not in self.tensors:
            return self._plain(module)
        packed = self.tensors.rows(name, ["I32", "U8"], (None, None))
        return self._integers(module, packed) if packed.dtype == torch.int32 else self._float4(module, packed)

    def _plain(self, module: str) -> Rows:
        """W8A8 and fp8."""
        values = self.tensors.rows(f"{module}.weight", ["I8", *FLOAT8], (None, None))
        scale = self.tensors.whole(f"{module}.weight_scale")
        if values.dtype != torch.int8:
            return float8(values, scale, self._where(f"{module}.weight_scale"), self.block)
        name = f"{module}.weight_zero_point"
        zeros = self.tensors.whole(name, ["I8"]) if name in self.tensors else None
        return signed(values, scale, zeros, self._where(module), int8_activations=self.has_activations)

    def _integers(self, module: str, words: FileRows) -> Rows:
        """W4A16 and W8A16."""
        n, k = map(int, self.tensors.whole(f"{module}.weight_shape", ["I64", "I32"], (2,)))
        bits = words.shape[1] * 32 // k if k > 0 else 0
        if bits not in BITS or tuple(words.shape) != (n, -(-k * bits // 32)):
            raise ModelError(
                f"{self._where(module)}: expected weight_packed with {', '.join(map(str, BITS))} bits for each weight "
                f"of [{n}, {k}], got {list(words.shape)} words"
            )
        scale = self.tensors.whole(f"{module}.weight_scale", FLOATS, (n, None))
        zeros: Tensor | int = 1 << bits - 1
        name = f"{module}.weight_zero_point"
        if name in self.tensors:
            packed = self.tensors.whole(name, ["I32"], (-(-n * bits // 32), scale.shape[1]))
            zeros = one_if_equal(unpack(packed.t(), bits)[:, :n].t())
        codes = Made(words, lambda rows: unpack(words[rows], bits)[:, :k], (n, k), torch.uint8)
        order = groups_of(self._order(module, k, scale.shape[1]), scale.shape[1], self._where(module))
        return grouped(GroupedRows(self._where(module), bits, codes, scale, zeros, order))

    def _order(self, module: str, k: int, groups: int) -> Tensor:
        name = f"{module}.weight_g_idx"
        if name in self.tensors:
            order = self.tensors.whole(name, ["I32", "I64"], (k,)).long()
            if not bool((order == -1).all()):  # the default, which means none
                return order
        return torch.arange(k) // -(-k // max(1, groups))

    def _float4(self, module: str, packed: FileRows) -> Rows:
        """NVFP4 and MXFP4."""
        n, k = packed.shape[0], packed.shape[1] * 2
        scale = self.tensors.rows(f"{module}.weight_scale", ["F8_E4M3", "U8", "F8_E8M0"], (n, None))
        group = k // max(1, scale.shape[1])
        if group * scale.shape[1] != k:
            raise ModelError(
                f"{self._where(module)}: expected weight_scale of groups of {k} columns, got {scale.shape[1]}"
            )
        if scale.dtype != torch.float8_e4m3fn:
            return mxfp4(packed, self.tensors.rows(f"{module}.weight_scale", ["U8", "F8_E8M0"], (n, k // 32)))
        whole = self.tensors.whole(f"{module}.weight_global_scale", shape=(1,)).float()
        return nvfp4(packed, lambda rows: scale[rows].float() / whole, group, self._where(module))

    def _where(self, name: str) -> str:
        return f"{self.tensors.directory}: {name}"
