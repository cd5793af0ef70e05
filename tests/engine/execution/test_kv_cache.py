from __future__ import annotations

import pytest
import torch
from engine.runs import MakeEngine
from torch import Tensor

from pybatch.engine.execution.kv_cache import INT4, KvCache, KvLayout, KvShape

DTYPES = (torch.float32, torch.float16, torch.int8, INT4)


def test_memory_for_no_block_says_what_to_set(make_engine: MakeEngine) -> None:
    with pytest.raises(ValueError, match=r"memory_utilization: 1e-12 .* less than one KV block of [\d,]+ bytes; raise"):
        make_engine(num_kv_blocks=None, memory_utilization=1e-12)


@pytest.mark.parametrize("kv_heads", [1, 2, 3, 8])
@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize(("dtype", "least"), [(torch.int8, 1.9), (torch.float8_e4m3fn, 1.9), (INT4, 3.5)])
def test_quantised_blocks_hold_more_tokens_in_the_same_memory(
    dtype: torch.dtype, least: float, head_dim: int, kv_heads: int
) -> None:
    def block_bytes(dtype: torch.dtype) -> int:
        return KvLayout((KvShape(kv_heads, head_dim),) * 30, 16, dtype).block_bytes

    assert block_bytes(torch.float16) / block_bytes(dtype) >= least


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("kv_heads", "head_dim", "block_size"), [(1, 8, 8), (3, 64, 16), (2, 80, 32), (5, 40, 64)])
def test_the_pieces_of_a_block_share_no_byte(dtype: torch.dtype, kv_heads: int, head_dim: int, block_size: int) -> None:
    other = KvShape(2 * kv_heads, head_dim + 8)  # layers may differ
    layout = KvLayout((KvShape(kv_heads, head_dim), other, KvShape(kv_heads, head_dim)), block_size, dtype)
    cache = KvCache(layout, 3, torch.device("cpu"))
    pieces = [piece for layer in cache.layers for piece in layer if piece is not None]
    for number, piece in enumerate(pieces):
        bytes_of(piece).fill_(number)
    for number, piece in enumerate(pieces):
        assert bytes_of(piece).eq(number).all()
    for layer in cache.layers:
        assert layer.k.data_ptr() % 64 == 0
        assert layer.v.data_ptr() % 64 == 0
    assert sum(piece[0].nbytes for piece in pieces) <= layout.block_bytes


def bytes_of(piece: Tensor) -> Tensor:
    return piece.view(torch.uint8) if piece.itemsize > 1 else piece.view(torch.int8)
