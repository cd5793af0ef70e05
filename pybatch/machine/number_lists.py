"""Lists of processors and of memory nodes."""

from __future__ import annotations

from collections.abc import Collection, Iterator


def numbers(text: str) -> Iterator[int]:
    """The numbers in a list as Linux writes them, such as 0-3,8. Raises ValueError for anything else."""
    for part in text.strip().split(","):
        first, dash, last = part.partition("-")
        yield from range(int(first), int(last if dash else first) + 1)


def allowed_numbers(text: str, allowed: Collection[int]) -> list[int]:
    """Those in a list, as far as it has any, in its order. Raises ValueError for one that is not allowed, before it
    goes on: a list may be of billions."""
    found = []
    for number in numbers(text):
        if number not in allowed:
            raise ValueError(f"{number} is not among {allowed}")
        found.append(number)
    return found
