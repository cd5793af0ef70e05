"""Lists of processors and of memory nodes."""

from __future__ import annotations

from collections.abc import Iterator


def numbers(text: str) -> Iterator[int]:
    """The numbers in a list as Linux writes them, such as 0-3,8. Raises ValueError for anything else."""
    for part in text.strip().split(","):
        first, dash, last = part.partition("-")
        yield from range(int(first), int(last if dash else first) + 1)
