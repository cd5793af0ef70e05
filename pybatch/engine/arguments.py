"""Keyword arguments that are wrong by name: an error that suggests the nearest right one."""

from __future__ import annotations

import dataclasses
import difflib
import functools
from collections.abc import Iterable
from typing import Any, TypeVar

T = TypeVar("T")


def expect_known(where: str, given: Iterable[str], known: Iterable[str]) -> None:
    """TypeError for the first name in `given` that is not in `known`; `where` says whose argument it is."""
    known = sorted(known)
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"expected one of {', '.join(known)}"
            raise TypeError(f"{where}: unknown argument {name!r}; {hint}")


def suggest_names(cls: type[T]) -> type[T]:
    """Decorates a keyword-only dataclass: an unknown keyword raises TypeError with the nearest field's name."""
    init = cls.__init__
    known = [field.name for field in dataclasses.fields(cls)]  # type: ignore[arg-type]

    @functools.wraps(init)
    def checked(self: T, **kwargs: Any) -> None:
        expect_known(cls.__name__, kwargs, known)
        init(self, **kwargs)

    cls.__init__ = checked  # type: ignore[assignment]
    return cls
