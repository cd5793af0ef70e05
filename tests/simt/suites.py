"""The suites of tests/ops on the SIMT layer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from unittest import mock

import backends

from simt.device import SimtOps

OPS = SimtOps()


def suite(name: str) -> ModuleType:
    """tests/ops/NAME.py on the layer."""
    return backends.suite(name, OPS)


@contextmanager
def running(module: ModuleType, ops: SimtOps) -> Iterator[None]:
    """Lets a suite's helpers run other kernels, such as mutated ones."""
    with mock.patch.object(module, "ops", ops):
        yield
