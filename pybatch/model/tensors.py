"""The tensors that the parts of a model hold. Parts are dataclasses and lists of them, and are not changed: what is
exchanged in them makes new ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, is_dataclass, replace
from typing import Any, TypeVar

from torch import Tensor

T = TypeVar("T")


def tensors_of(part: object) -> list[Tensor]:
    """Each once, in the order in which `changed` comes to them."""
    found: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        found.setdefault(id(tensor), tensor)
        return tensor

    changed(part, Tensor, keep)
    return list(found.values())


def changed(part: Any, kind: type[T], change: Callable[[T], Any], done: dict[int, Any] | None = None) -> Any:
    """The part with `change(each)` in place of each instance of kind in it. What occurs in several places is changed
    once, and so still is one thing."""
    done = {} if done is None else done
    if isinstance(part, kind):
        if id(part) not in done:
            done[id(part)] = change(part)
        return done[id(part)]
    if isinstance(part, list | tuple) and not hasattr(part, "_fields"):
        return type(part)(changed(each, kind, change, done) for each in part)
    if is_dataclass(part) and not isinstance(part, type):
        if id(part) not in done:
            values = {field.name: getattr(part, field.name) for field in fields(part)}
            new = {name: changed(value, kind, change, done) for name, value in values.items()}
            same = all(new[name] is value for name, value in values.items())
            done[id(part)] = part if same else replace(part, **new)
        return done[id(part)]
    return part
