"""The prefixes that token sequences share, as a tree, and an order of its leaves that keeps these together."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from operator import attrgetter
from typing import TypeVar

import numpy as np

UNKNOWN_OUTPUT = 256  # output tokens expected of a row that does not say

_TOKEN = array("i").itemsize

L = TypeVar("L", bound="Leaf")


class Leaf:
    """A token sequence. number: the order among equals.

    Costs are integers, so that sums are exact. compute: tokens that pass through the model. memory: half tokens of KV
    cache, times the steps for which they are held while the output grows.
    """

    __slots__ = ("compute", "depth", "memory", "number", "own_compute", "tokens")

    def __init__(self, token_ids: Sequence[int], output: int | None, number: int) -> None:
        self.tokens = array("i", token_ids).tobytes()
        self.depth = len(token_ids)
        self.compute = output = UNKNOWN_OUTPUT if output is None else max(1, output)
        self.memory = output * (2 * self.depth + output)
        self.number = number
        self.own_compute = 0  # of the output and the tokens that no other leaf has, once it is in a tree

    @property
    def token_ids(self) -> array[int]:
        return array("i", self.tokens)


class _Node:
    """A prefix of `depth` tokens; compute, memory and number: the sum and the least of what is below it."""

    __slots__ = ("children", "compute", "depth", "memory", "number")

    def __init__(self, depth: int) -> None:
        self.depth = depth
        self.children: list[Leaf | _Node] = []
        self.compute = self.memory = self.number = 0

    def attach(self, child: Leaf | _Node) -> None:
        self.number = min(self.number, child.number) if self.children else child.number
        self.compute += self.compute_of(child)
        self.memory += child.memory
        self.children.append(child)

    def compute_of(self, child: Leaf | _Node) -> int:
        """With the tokens between this prefix and the child's, which are computed once for all that share them."""
        return child.depth - self.depth + child.compute

    def by_density(self) -> list[Leaf | _Node]:
        """The children, those that need the least compute for their memory first; of equals the last to come."""
        return sorted(self.children, key=lambda child: (self.compute_of(child) / child.memory, -child.number))


def by_density(leaves: Sequence[L], block_size: int) -> list[L]:
    """The leaves, those that need the most compute for their memory first, as far as all that share a prefix stay
    together: a walk through the prefix tree whose nodes have their children in that order (the resource-aware prefix
    tree of BlendServe, Zhao et al. 2024). Prefixes count in whole blocks, as in the prefix cache."""
    order: list[L] = []
    stack: list[Leaf | _Node] = [_tree(sorted(leaves, key=attrgetter("tokens")), block_size)]
    while stack:
        at = stack.pop()
        if isinstance(at, _Node):
            for child in (children := at.by_density()):
                if isinstance(child, Leaf):
                    child.own_compute = at.compute_of(child)
            stack += children
        else:
            order.append(at)  # type: ignore[arg-type]
    return order


def _tree(leaves: Sequence[Leaf], block_size: int) -> _Node:
    """From leaves in lexicographic order. Any order of tokens does: here it is that of their bytes in memory."""
    path = [_Node(0)]  # from the root to the node of the leaf at hand
    before = 0  # tokens shared with the leaf before
    for i, leaf in enumerate(leaves):
        while path[-1].depth > before:
            node = path.pop()
            if path[-1].depth < before:
                path.append(_Node(before))
            path[-1].attach(node)
        after = _shared(leaf.tokens, leaves[i + 1].tokens, block_size, before) if i + 1 < len(leaves) else 0
        if after > path[-1].depth:
            path.append(_Node(after))
        path[-1].attach(leaf)
        before = after
    while len(path) > 1:
        node = path.pop()
        path[-1].attach(node)
    return path[0]


def _shared(a: bytes, b: bytes, block_size: int, guess: int) -> int:
    """How many tokens two sequences begin with alike, in whole blocks. guess: quick to try."""
    block, at = block_size * _TOKEN, guess * _TOKEN
    if a[at : at + block] != b[at : at + block] and a[:at] == b[:at]:
        return guess
    size = min(len(a), len(b)) // _TOKEN
    differ = np.frombuffer(a, np.intc, size) != np.frombuffer(b, np.intc, size)
    first = int(differ.argmax()) if size else 0
    same = first if size and differ[first] else size
    return same // block_size * block_size
