from __future__ import annotations

import random
from itertools import permutations

from hypothesis import given, settings
from hypothesis import strategies as st

from pybatch.jobs.order.prefix_savings import PrefixSavings


def savings(prompts: list[list[int]], **options: int) -> int:
    counted = PrefixSavings(**options)
    for prompt in prompts:
        counted.add(prompt)
    return counted.tokens


def found_in_order(prompts: tuple[list[int], ...]) -> int:
    """What a cache that keeps every token finds of prompts that come one after the other."""
    known: set[tuple[int, ...]] = set()
    found = 0
    for prompt in prompts:
        found += sum(tuple(prompt[:length]) in known for length in range(1, len(prompt)))
        known.update(tuple(prompt[:length]) for length in range(1, len(prompt) + 1))
    return found


@given(st.lists(st.lists(st.integers(0, 1), min_size=1, max_size=7), max_size=5))
@settings(max_examples=300, deadline=None)
def test_it_is_what_the_best_order_saves(prompts: list[list[int]]) -> None:
    assert savings(prompts) == max(map(found_in_order, permutations(prompts)))


def test_more_prefixes_than_the_limit_are_estimated() -> None:
    chosen = random.Random(0)
    prefixes = [[number, *(chosen.randrange(1000) for _ in range(39))] for number in range(500)]
    prompts = [[*prefixes[i % 500], 1000 + i, *(chosen.randrange(1000) for _ in range(8))] for i in range(2000)]
    exact = savings(prompts, limit=1 << 20)
    assert exact == 1500 * 40
    counted = PrefixSavings(limit=1024)
    for prompt in prompts:
        counted.add(prompt)
        assert len(counted._seen) <= 1024
    assert abs(counted.tokens - exact) < 0.1 * exact
