"""Rows of a table by their numbers."""

from __future__ import annotations

import torch
from torch import Tensor

from pybatch.ops.library import kernels


def embedding(
    ids: Tensor, table: Tensor, out: Tensor, vocab: int, scale: Tensor | None = None, multiplier: float = 1.0
) -> Tensor:
    """out[i] = table[ids[i]] * multiplier, computed in float32 and converted to out's dtype.

    ids: [n] int64 in [0, vocab); out: [n, width] F. table: [vocab, width] F without gaps, or weights as packed by
    pack_dense or (with scale [vocab] float32) pack_int8 or pack_float8, or pack_gguf, so that tied embeddings need one
    copy.
    """
    kernels.embedding.default(ids, table, scale, vocab, multiplier, out)
    return out


def take_rows(x: Tensor, rows: Tensor | list[int], out: Tensor | None = None) -> Tensor:
    """x[rows] on the threads of the other kernels. torch's own indexing wakes OpenMP's, which spin for milliseconds
    afterwards and take processors from these.

    x: [n, width] F, without gaps between its rows. rows: [m] int64 in [0, n), or a list. out: [m, width] F.
    """
    if isinstance(rows, list):
        rows = torch.tensor(rows, dtype=torch.int64, device=x.device)
    return embedding(rows, x, x.new_empty(len(rows), x.shape[1]) if out is None else out, len(x))
