"""What makes a whole input unreadable."""

from __future__ import annotations

import errno
from collections.abc import Hashable, Iterable
from typing import TypeVar

T = TypeVar("T", bound=Hashable)


def unreadable(name: str, reason: object) -> OSError:
    """The error for a file that is damaged, or is not what it should be."""
    return OSError(errno.EIO, str(reason), name)


def missing_package(name: str, package: str, extra: str) -> ValueError:
    """The error for an input that needs a library which is not installed."""
    return ValueError(f"{name} needs the package {package}: pip install 'pybatch[{extra}]'")


def first_repeated(names: Iterable[T]) -> T | None:
    """The first name that has occurred before."""
    seen: set[T] = set()
    for name in names:
        if name in seen:
            return name
        seen.add(name)
    return None
