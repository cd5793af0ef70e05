"""The ops on a GPU, for tests whose tensors are on the CPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pybatch import ops


class OnCuda:
    """pybatch.ops for CPU tensors, by way of the GPU: what an op changes in place is copied back."""

    def __getattr__(self, name: str) -> Any:
        op = getattr(ops, name)
        return self._through_the_gpu(op) if hasattr(torch.ops.pybatch, name) else op

    @staticmethod
    def _through_the_gpu(op: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            moved: list[tuple[Tensor, Tensor]] = []

            def to_gpu(x: Any) -> Any:
                if hasattr(x, "_fields"):
                    return type(x)(*map(to_gpu, x))
                if not isinstance(x, Tensor):
                    return x
                if x.numel() == 0:
                    moved.append((x, x.cuda()))
                else:  # with its strides, so that rows and blocks that lie apart do so there
                    last = sum((n - 1) * stride for n, stride in zip(x.shape, x.stride(), strict=True))
                    span = torch.as_strided(x, (last + 1,), (1,)).cuda()
                    moved.append((x, torch.as_strided(span, x.shape, x.stride())))
                return moved[-1][1]

            def to_cpu(x: Any) -> Any:
                if hasattr(x, "_fields"):
                    return type(x)(*map(to_cpu, x))
                if isinstance(x, tuple):
                    return tuple(map(to_cpu, x))
                return next((cpu for cpu, gpu in moved if gpu is x), x.cpu()) if isinstance(x, Tensor) else x

            positional = list(map(to_gpu, args))  # before the keywords: an out that is one of these comes back after it
            result = op(*positional, **{name: to_gpu(x) for name, x in kwargs.items()})
            for cpu, gpu in moved:
                cpu.copy_(gpu)
            return to_cpu(result)

        return call
