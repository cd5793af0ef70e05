"""Shields a model from torch settings that the caller has made for this thread."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch


@contextmanager
def neutral_torch() -> Iterator[None]:
    """Inside: tensors are made on the CPU where nothing else is said (torch.set_default_device), are ordinary ones
    (torch.inference_mode) without gradients, and keep their types (torch.autocast).

    torch.set_default_dtype holds for all threads, so it is left as it is: say the dtype of every tensor that is made.
    """
    with ExitStack() as stack:
        if torch._C._len_torch_function_stack():
            stack.enter_context(torch._C.DisableTorchFunction())
        if torch.is_inference_mode_enabled():
            stack.enter_context(torch.inference_mode(False))
        if torch.is_grad_enabled():
            stack.enter_context(torch.no_grad())
        for device in ("cpu", "cuda"):
            if torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        yield
