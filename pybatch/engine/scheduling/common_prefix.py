"""How far two sequences are alike."""

from __future__ import annotations

from array import array


def num_shared(a: bytes | array[int], b: bytes | array[int]) -> int:
    """How many elements two of one type begin with in common, by halving: slices compare quickly, and a loop in Python
    does not."""
    low, high = 0, min(len(a), len(b))
    while low < high:
        middle = (low + high + 1) // 2
        if a[low:middle] == b[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
