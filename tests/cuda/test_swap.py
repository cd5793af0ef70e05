"""KV blocks between the GPU and the host's memory."""

from __future__ import annotations

import pytest
import torch

from pybatch import ops

pytestmark = pytest.mark.skipif(not ops.CUDA, reason="needs a GPU, and pybatch built with CUDA")

PAIRS = [[0, 5], [3, 1], [7, 0]]


def test_blocks_go_to_pinned_memory_and_back() -> None:
    pool = torch.randint(0, 256, (8, 40_000), dtype=torch.uint8, device="cuda")
    host = torch.zeros(6, 40_000, dtype=torch.uint8).pin_memory()
    pairs, wanted = torch.tensor(PAIRS, device="cuda"), pool.clone()
    ops.swap_blocks(pool, host, pairs)
    torch.cuda.synchronize()
    for source, target in PAIRS:
        assert torch.equal(host[target], pool[source].cpu())
    pool.zero_()
    ops.swap_blocks(host, pool, pairs.flip(1))
    for source, _ in PAIRS:
        assert torch.equal(pool[source], wanted[source])


def test_pageable_memory_is_refused() -> None:
    pool = torch.zeros(8, 64, dtype=torch.uint8, device="cuda")
    with pytest.raises(RuntimeError, match="dst: expected a tensor on"):
        ops.swap_blocks(pool, torch.zeros(8, 64, dtype=torch.uint8), torch.tensor(PAIRS, device="cuda"))
