from __future__ import annotations

import sys

from hypothesis import example, given, settings
from hypothesis import strategies as st

from pybatch.jobs.order.prefix_tree import Leaf, by_density

BLOCK = 2
prompts = st.lists(st.tuples(st.lists(st.integers(0, 2), min_size=1, max_size=12), st.integers(0, 9)), max_size=40)


def ordered(rows: list[tuple[list[int], int]], block_size: int = BLOCK) -> list[Leaf]:
    return by_density([Leaf(tokens, output, i) for i, (tokens, output) in enumerate(rows)], block_size)


@settings(deadline=None)
@given(prompts)
@example([([1] * i, 1) for i in range(1, 13)])
def test_rows_that_share_whole_blocks_stand_side_by_side(rows: list[tuple[list[int], int]]) -> None:
    order = ordered(rows)
    assert sorted(leaf.number for leaf in order) == list(range(len(rows)))
    for depth in range(BLOCK, 13, BLOCK):
        prefixes = [tuple(leaf.token_ids[:depth]) if leaf.depth >= depth else None for leaf in order]
        begun = [prefix for prefix, before in zip(prefixes, [None, *prefixes], strict=False) if prefix != before]
        begun = [prefix for prefix in begun if prefix is not None]
        assert len(begun) == len(set(begun)), f"a prefix of {depth} tokens is taken up again"


@settings(deadline=None)
@given(prompts)
def test_a_prefix_is_nobodys_own_compute(rows: list[tuple[list[int], int]]) -> None:
    for leaf in ordered(rows):
        others = [tokens for i, (tokens, _) in enumerate(rows) if i != leaf.number]
        shared = 0
        while shared + BLOCK <= leaf.depth and any(
            other[: shared + BLOCK] == rows[leaf.number][0][: shared + BLOCK] for other in others
        ):
            shared += BLOCK
        assert leaf.own_compute == leaf.depth - shared + max(1, rows[leaf.number][1])


def test_groups_and_their_rows_stand_by_compute_for_memory_then_as_they_came() -> None:
    short_output, long_output = [1, 1], [2, 2]
    rows = [([*long_output, i], 100) for i in range(3)] + [([*short_output, i], 1 + i % 2) for i in range(4)]
    assert [leaf.number for leaf in ordered(rows)] == [3, 5, 4, 6, 0, 1, 2]


def test_a_chain_of_prefixes_deeper_than_the_stack() -> None:
    depth = 2 * sys.getrecursionlimit()
    assert len(ordered([([7] * i, 1) for i in range(1, depth)], 1)) == depth - 1
