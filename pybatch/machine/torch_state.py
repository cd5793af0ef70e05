"""Shields a model from torch settings that the caller has made for this thread."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import wraps
from typing import ParamSpec, TypeVar

import torch

P = ParamSpec("P")
T = TypeVar("T")


def in_neutral_torch(function: Callable[P, T]) -> Callable[P, T]:
    """Inside the function: tensors are made on the CPU where nothing else is said (torch.set_default_device), are
    ordinary ones (torch.inference_mode), and keep their types (torch.autocast).

    No tensor here requires gradients, so it does not matter whether they are enabled. torch.set_default_dtype holds for
    all threads, so it is left as it is: say the dtype of every tensor that is made.
    """

    @wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> T:
        if _is_neutral():  # nearly always; the rest takes as long as some kernels of a step
            return function(*args, **kwargs)
        with _neutral():
            return function(*args, **kwargs)

    return run


def on_device(device_of: Callable[..., torch.device]) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Inside the function a GPU is this thread's current one: streams, events and graphs that name no device are that
    device's. A CPU has no index, and nothing changes for it. device_of: which, by the function's arguments."""

    def decorate(function: Callable[P, T]) -> Callable[P, T]:
        @wraps(function)
        def run(*args: P.args, **kwargs: P.kwargs) -> T:
            with torch.accelerator.device_index(device_of(*args, **kwargs).index):
                return function(*args, **kwargs)

        return run

    return decorate


def _is_neutral() -> bool:
    return not (
        torch._C._len_torch_function_stack()
        or torch.is_inference_mode_enabled()
        or torch.is_autocast_enabled("cpu")
        or torch.is_autocast_enabled("cuda")
    )


@contextmanager
def _neutral() -> Iterator[None]:
    with ExitStack() as stack:
        if torch._C._len_torch_function_stack():
            stack.enter_context(torch._C.DisableTorchFunction())
        if torch.is_inference_mode_enabled():
            stack.enter_context(torch.inference_mode(False))
        for device in ("cpu", "cuda"):
            if torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        yield
