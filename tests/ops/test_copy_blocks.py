"""copy_blocks and swap_blocks move whole blocks, byte for byte."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pybatch import ops


def pool_of(blocks: int, block_bytes: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(256, (blocks, block_bytes), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


@settings(max_examples=40, deadline=None, derandomize=True)
@given(data=st.data(), block_bytes=st.sampled_from([1, 63, 4096, 65536, 65537, 300_000]))
def test_copies_within_a_pool(data: st.DataObject, block_bytes: int) -> None:
    pool = pool_of(9, block_bytes)
    blocks = data.draw(st.permutations(range(9)))
    sources, targets = blocks[:3], blocks[3 : data.draw(st.integers(3, 9))]
    pairs = [(data.draw(st.sampled_from(sources)), target) for target in targets]
    wanted = pool.clone()
    for source, target in pairs:
        wanted[target] = pool[source]
    ops.copy_blocks(pool, torch.tensor(pairs, dtype=torch.int64).view(-1, 2))
    assert torch.equal(pool, wanted)


@settings(max_examples=20, deadline=None, derandomize=True)
@given(
    pairs=st.lists(st.tuples(st.integers(0, 4), st.integers(0, 6)), max_size=7, unique_by=lambda pair: pair[1]),
    block_bytes=st.sampled_from([1, 63, 65536, 300_000]),
)
def test_swaps_between_pools(pairs: list[tuple[int, int]], block_bytes: int) -> None:
    src, dst = pool_of(5, block_bytes), pool_of(7, block_bytes, seed=1)
    wanted = dst.clone()
    for source, target in pairs:
        wanted[target] = src[source]
    ops.swap_blocks(src, dst, torch.tensor(pairs, dtype=torch.int64).view(-1, 2))
    assert torch.equal(dst, wanted)


@pytest.mark.host
@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ([[0, 4]], r"pairs: expected destination blocks in \[0, 4\), got 4 at 0"),
        ([[0, 1], [-1, 2]], r"pairs: expected source blocks in \[0, 4\), got -1 at 1"),
        ([[0, 1], [2, 1]], "pairs: expected each destination block once, got 1 twice"),
        ([[0, 1], [1, 2]], "pairs: expected no block as both source and destination, got 1"),
        ([[0, 1, 2]], r"pairs: expected shape \[\*, 2\], got \[1, 3\]"),
    ],
)
def test_refuses_bad_pairs(pairs: list[list[int]], message: str) -> None:
    with pytest.raises(RuntimeError, match=message):
        ops.copy_blocks(pool_of(4, 64), torch.tensor(pairs))


@pytest.mark.host
def test_refuses_pools_of_different_blocks() -> None:
    with pytest.raises(RuntimeError, match=r"dst: expected shape \[\*, 64\], got \[4, 32\]"):
        ops.swap_blocks(pool_of(4, 64), pool_of(4, 32), torch.tensor([[0, 1]]))


@pytest.mark.host
def test_refuses_to_swap_within_the_same_memory() -> None:
    pool = pool_of(8, 64)
    for src, dst in ((pool, pool), (pool[:5], pool[3:])):
        with pytest.raises(RuntimeError, match=r"^dst: expected memory apart from src's"):
            ops.swap_blocks(src, dst, torch.tensor([[0, 1]]))
    ops.swap_blocks(pool[:4], pool[4:], torch.tensor([[0, 1]]))
    assert torch.equal(pool[5], pool[0])
