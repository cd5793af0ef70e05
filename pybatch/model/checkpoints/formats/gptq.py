"""GPTQ (Frantar et al. 2022) as AutoGPTQ, GPTQModel, optimum and AutoRound write it.

Of a matrix [N, K] in groups of columns: `qweight` [K * bits / 32, N] int32, codes of consecutive columns from the
lowest bits up; `scales` [groups, N]; `qzeros` [groups, N * bits / 32] int32, zero points likewise; `g_idx` [K] int32,
the group of each column, which act-order mixes. Version 1 stores zero points less one, version 2 ("gptq_v2",
"gptq_p") as they are.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pybatch.model.checkpoints.formats.matrices import GroupedRows, Made, grouped, groups_of, one_if_equal
from pybatch.model.checkpoints.formats.words import unpack
from pybatch.model.checkpoints.stored import StoredTensors
from pybatch.model.errors import ModelError
from pybatch.model.fields import Fields
from pybatch.model.rows import Rows

BITS = (2, 3, 4, 8)
ADDED = {"gptq": 1, "gptq_v2": 0, "gptq_p": 0}  # to the zero points of a version


class GPTQ:
    def __init__(self, config: Fields, tensors: StoredTensors) -> None:
        self.tensors = tensors
        config.choice("bits", BITS)  # of most; matrices that "dynamic" names may have others, so each is asked
        self.group_size = config.integer("group_size", 128, low=-1, high=1 << 20)
        self.version = config.choice("format" if "format" in config else "checkpoint_format", tuple(ADDED), "gptq")
        self.added = ADDED[self.version]

    def holds(self, module: str) -> bool:
        return f"{module}.qweight" in self.tensors

    def matrix(self, module: str) -> Rows:
        where = f"{self.tensors.directory}: {module}"
        words = self.tensors.rows(f"{module}.qweight", ["I32"], (None, None))
        n = words.shape[1]
        scales = self.tensors.whole(f"{module}.scales", shape=(None, n))
        qzeros = self.tensors.whole(f"{module}.qzeros", ["I32"], (len(scales), None))
        bits = qzeros.shape[1] * 32 // n
        planes = self.version == "gptq_p" and bits == 3  # whose bits lie apart
        if bits not in BITS or planes or words.shape[0] * 32 % bits or not len(scales):
            raise ModelError(
                f"{where}: expected codes of {', '.join(map(str, BITS))} bits, got qweight {list(words.shape)} and "
                f"qzeros {list(qzeros.shape)}"
            )
        k = words.shape[0] * 32 // bits
        zeros = self._zeros(qzeros, bits)[:, :n]
        codes = Made(None, lambda rows: unpack(words[:][:, rows].t(), bits), (n, k), torch.uint8)
        order = groups_of(self._order(module, k), len(scales), where)
        return grouped(GroupedRows(where, bits, codes, scales.t(), one_if_equal(zeros.t()), order))

    def _zeros(self, words: Tensor, bits: int) -> Tensor:
        """Ones are added to words, not to codes: a zero point of 0 has borrowed from the next one of its word."""
        if 32 % bits == 0:
            return unpack(words + self.added * sum(1 << at for at in range(0, 32, bits)), bits)
        return (unpack(words, bits) + self.added) & ((1 << bits) - 1)

    def _order(self, module: str, k: int) -> Tensor:
        name = f"{module}.g_idx"
        if name in self.tensors:
            return self.tensors.whole(name, ["I32"], (k,)).long()
        return torch.arange(k) // (self.group_size if self.group_size > 0 else k)
