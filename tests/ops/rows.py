"""What every op that works row by row must keep: a row's bits are its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

FLOATS = (torch.float32, torch.float16, torch.bfloat16)


@contextmanager
def threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def bits(x: Tensor) -> Tensor:
    return x.contiguous().view(torch.uint8)


def same_bits(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(bits(a), bits(b))


def apart(x: Tensor) -> Tensor:
    """The same rows, not contiguous and at an odd offset, with NaN between them."""
    wide = x.new_full((x.shape[0], x.shape[1] + 5), torch.nan)
    wide[:, 3:-2] = x
    return wide[:, 3:-2]


def assert_rows_stand_alone(op: Callable[[Tensor], Tensor], x: Tensor) -> None:
    """op gives each row of x the same bits alone, in the batch, reversed, strided, with 1 and with 2 threads."""
    with threads(1):
        whole = op(x)
        for i in range(len(x)):
            assert same_bits(op(x[i : i + 1]), whole[i : i + 1])
        assert same_bits(op(x.flip(0)).flip(0), whole)
        assert same_bits(op(apart(x)), whole)
    with threads(2):
        assert same_bits(op(x), whole)
