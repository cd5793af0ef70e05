from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
import torch

from pybatch.machine.faults import is_machine_fault, is_request_fault


def raised(call: Callable[[], object]) -> BaseException:
    try:
        call()
    except BaseException as error:
        return error
    raise AssertionError("it does not raise")


class Panic(BaseException):
    """As pyo3's, which a tokenizer raises."""


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory"),
        torch.AcceleratorError("an illegal memory access", 700),
        RuntimeError("CUDA error: device-side assert triggered"),
        RuntimeError("std::bad_alloc"),
        raised(lambda: torch.empty(2**60)),
        raised(lambda: bytearray(2**60)),
    ],
    ids=repr,
)
def test_out_of_memory_and_broken_devices_are_the_machines(error: BaseException) -> None:
    assert is_machine_fault(error)
    assert not is_request_fault(error)


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit, GeneratorExit, asyncio.CancelledError])
def test_interrupts_are_nobodys_fault(kind: type[BaseException]) -> None:
    assert not is_machine_fault(kind())
    assert not is_request_fault(kind())


@pytest.mark.parametrize("error", [ValueError("x"), RuntimeError("shape"), RecursionError(), Panic("boom")], ids=repr)
def test_all_else_is_a_requests(error: BaseException) -> None:
    assert is_request_fault(error)
