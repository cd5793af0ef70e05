"""bitsandbytes, as transformers saves it.

8 bits (LLM.int8, Dettmers et al. 2022): `weight` int8 [N, K] and `SCB` [N], 127 times the scale of each row.
4 bits (QLoRA, Dettmers et al. 2023): `weight`, two codes in a byte, the first in its upper half, of all rows one after
another; `weight.quant_map` [16], the value of each code; `weight.absmax`, the scale of each `blocksize` weights, itself
quantised where there is a `weight.nested_absmax`; `weight.quant_state...`, JSON with the shape and the block sizes.
"""

from __future__ import annotations

import json
from collections.abc import Callable

import torch
from torch import Tensor

from pybatch.model.checkpoints.formats.matrices import Made, looked_up, requantized, signed
from pybatch.model.checkpoints.stored import DTYPES, FLOATS, StoredTensors
from pybatch.model.errors import ModelError
from pybatch.model.fields import Fields, short
from pybatch.model.rows import Rows

STATES = ("nf4", "fp4")


class BitsAndBytes:
    def __init__(self, config: Fields, tensors: StoredTensors) -> None:
        self.tensors = tensors

    def holds(self, module: str) -> bool:
        return f"{module}.SCB" in self.tensors or f"{module}.weight.absmax" in self.tensors

    def matrix(self, module: str) -> Rows:
        return self._int8(module) if f"{module}.SCB" in self.tensors else self._4bit(module)

    def _int8(self, module: str) -> Rows:
        values = self.tensors.rows(f"{module}.weight", ["I8"], (None, None))
        scale = self.tensors.whole(f"{module}.SCB", shape=(values.shape[0],)).float() / 127
        return signed(values, scale, None, f"{self.tensors.directory}: {module}")

    def _4bit(self, module: str) -> Rows:
        weight = f"{module}.weight"
        state = self._state(weight)
        n, k = state.pair("shape") or (0, 0)
        size = state.integer("blocksize", high=1 << 20)
        blocks = -(-n * k // size)
        values = self.tensors.whole(f"{weight}.quant_map", shape=(16,)).float()
        packed = self.tensors.whole(weight, tuple(DTYPES)).flatten().view(torch.uint8)
        if len(packed) != -(-n * k // 2):
            raise ModelError(
                f"{self.tensors.directory}: {weight}: expected the {-(-n * k // 2):,} bytes of [{n}, {k}], "
                f"got {len(packed):,}"
            )
        scales = self._absmax(weight, state, blocks)

        def weights(rows: slice) -> Tensor:
            first, last = rows.start * k, rows.stop * k
            octets = packed[first // 2 : -(-last // 2)]
            codes = torch.stack([octets >> 4, octets & 15], dim=-1).flatten()[first % 2 :][: last - first]
            begin, end = first // size, -(-last // size)
            each = scales(slice(begin, end)).repeat_interleave(size)[first - begin * size :][: last - first]
            return (looked_up(values, codes) * each).view(-1, k)

        made = Made(None, weights, (n, k), torch.bfloat16)
        return requantized(made, f"{state.text('quant_type', '4-bit')} weights", f"{self.tensors.directory}: {weight}")

    def _state(self, weight: str) -> Fields:
        names = [f"{weight}.quant_state.bitsandbytes__{kind}" for kind in STATES]
        name = next((name for name in names if name in self.tensors), names[0])
        content = bytes(self.tensors.whole(name, ["U8"], (None,)).tolist())
        where = f"{self.tensors.directory}: {name}"
        try:
            state = json.loads(content)
        except (ValueError, RecursionError):
            state = None
        if not isinstance(state, dict):
            raise ModelError(f"{where}: expected a JSON object, got {short(content)}")
        return Fields(state, where)

    def _absmax(self, weight: str, state: Fields, blocks: int) -> Callable[[slice], Tensor]:
        """The scales of some blocks."""
        if f"{weight}.nested_absmax" not in self.tensors:
            plain = self.tensors.whole(f"{weight}.absmax", FLOATS, (blocks,))
            return lambda some: plain[some].float()
        codes = self.tensors.whole(f"{weight}.absmax", ["U8"], (blocks,))
        size = state.integer("nested_blocksize", high=1 << 20)
        offset = state.number("nested_offset", above=-1e30)
        outer = self.tensors.whole(f"{weight}.nested_absmax", FLOATS, (-(-blocks // size),)).float()
        values = self.tensors.whole(f"{weight}.nested_quant_map", FLOATS, (256,)).float()
        return lambda some: values[codes[some].int()] * outer[torch.arange(some.start, some.stop) // size] + offset
