"""Decode in a CUDA graph: one capture serves every length that fits, and a replay has the bits of an eager call."""

from __future__ import annotations

import pytest
import torch

from pybatch import ops

pytestmark = pytest.mark.skipif(not ops.CUDA, reason="needs a GPU, and pybatch built with CUDA")

KV_HEADS, GROUP, DIM, BLOCK, SEQUENCES, MAX_LEN = 2, 4, 128, 16, 5, 2048


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_replay_has_the_bits_of_an_eager_call(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    blocks = SEQUENCES * MAX_LEN // BLOCK
    k = torch.randn(blocks, KV_HEADS, DIM, BLOCK, device="cuda").to(dtype)
    v = torch.randn(blocks, KV_HEADS, BLOCK, DIM, device="cuda").to(dtype)
    tables = torch.randperm(blocks, device="cuda").int().view(SEQUENCES, -1)
    start = torch.arange(SEQUENCES + 1, device="cuda").int()
    lengths = torch.ones(SEQUENCES, device="cuda").int()
    q = torch.randn(SEQUENCES, KV_HEADS * GROUP * DIM, device="cuda").to(dtype)
    out = torch.empty_like(q)
    counters = torch.zeros(1 + SEQUENCES * KV_HEADS * GROUP, device="cuda", dtype=torch.int32)

    def attend() -> torch.Tensor:
        return ops.paged_attention(q, k, v, tables, start, lengths, DIM**-0.5, counters=counters, out=out)

    attend()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        attend()
    for _ in range(20):
        lengths.copy_(torch.randint(1, MAX_LEN + 1, (SEQUENCES,)))
        q.normal_()
        eager = attend().clone()
        out.zero_()
        graph.replay()
        assert torch.equal(out, eager)
        assert not counters.any()
