"""AWQ (Lin et al. 2023) as AutoAWQ and AutoRound write it, version "gemm".

Of a matrix [N, K] in groups of columns: `qweight` [K, N / 8] int32, codes of eight rows in a word, the lowest bits
those of rows 0, 2, 4, 6, 1, 3, 5, 7; `scales` [groups, N]; `qzeros` [groups, N / 8] int32, zero points in the same
order.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pybatch.model.checkpoints.formats.matrices import GroupedRows, Made, grouped, groups_of, one_if_equal
from pybatch.model.checkpoints.stored import StoredTensors
from pybatch.model.fields import Fields
from pybatch.model.rows import Rows

BITS = 4
IN_WORD = 8
SHIFTS = [0, 16, 4, 20, 8, 24, 12, 28]  # in a word, of each of its rows


class AWQ:
    def __init__(self, config: Fields, tensors: StoredTensors) -> None:
        self.tensors = tensors
        config.choice("bits", (BITS,))
        config.choice("version" if "version" in config else "format", ("gemm", "GEMM"), "gemm")
        self.group_size = config.integer("group_size", 128, low=-1, high=1 << 20)

    def holds(self, module: str) -> bool:
        return f"{module}.qweight" in self.tensors

    def matrix(self, module: str) -> Rows:
        words = self.tensors.rows(f"{module}.qweight", ["I32"], (None, None))
        k, n = words.shape[0], words.shape[1] * IN_WORD
        size = self.group_size if self.group_size > 0 else k
        groups = -(-k // size)
        scales = self.tensors.whole(f"{module}.scales", shape=(groups, n))
        zeros = _unpack(self.tensors.whole(f"{module}.qzeros", ["I32"], (groups, n // IN_WORD)))

        def codes(rows: slice) -> Tensor:
            first = rows.start // IN_WORD
            found = _unpack(words[:][:, first : -(-rows.stop // IN_WORD)])
            return found[rows.start - first * IN_WORD :][: rows.stop - rows.start]

        where = f"{self.tensors.directory}: {module}"
        order = groups_of(torch.arange(k) // size, groups, where)
        made = Made(None, codes, (n, k), torch.uint8)
        return grouped(GroupedRows(where, BITS, made, scales.t(), one_if_equal(zeros), order))


def _unpack(words: Tensor) -> Tensor:
    """[n, W] -> [W * 8, n] uint8."""
    turned = words.t().contiguous()
    codes = torch.empty(len(turned), IN_WORD, len(words), dtype=torch.uint8)
    for row, shift in enumerate(SHIFTS):
        codes[:, row] = turned >> shift & 15
    return codes.flatten(0, 1)
