"""Whose fault an error is: the machine's, an interrupt's, or that of the request at work."""

from __future__ import annotations

from asyncio import CancelledError

import torch

from pybatch.machine.ranks import RankError

# torch and the kernels raise RuntimeError where an allocation fails on the CPU, or a device has stopped working.
_MACHINE = ("can't allocate memory", "bad_alloc", "out of memory", "CUDA error", "can't start new thread")


def is_machine_fault(error: BaseException) -> bool:
    """Out of memory, or a device that has stopped working: no request is to blame, and others would fail as well."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError | torch.AcceleratorError | RankError):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in _MACHINE)


def is_request_fault(error: BaseException) -> bool:
    """Not the machine's and no interrupt. A panic in a tokenizer's native code counts, though it is no Exception."""
    interrupts = KeyboardInterrupt | SystemExit | GeneratorExit | CancelledError
    return not isinstance(error, interrupts) and not is_machine_fault(error)


def describe(error: BaseException) -> str:
    """Its name and its text, for a request that it ended."""
    try:
        return f"{type(error).__name__}: {error}"
    except Exception:  # its own __str__ fails
        return type(error).__name__
