"""Arguments that are the fields of a dataclass: one place for their names, types, defaults and descriptions.

A field is described by the text in its annotation: ``max_num_seqs: Annotated[int, "The most sequences in a step."]``.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import inspect
import logging
import math
import reprlib
import textwrap
from collections.abc import Callable, Collection, Iterable, Mapping
from numbers import Real
from typing import Annotated, Any, Concatenate, ParamSpec, TypeVar, get_args, get_origin, get_type_hints

logger = logging.getLogger(__name__)

LONGEST_NAME = 80  # characters of one that may be a slip of the pen

T = TypeVar("T")
Self = TypeVar("Self")
P = ParamSpec("P")


def expect_known(where: str, given: Iterable[str], known: Iterable[str]) -> None:
    """Raises TypeError for the first name in `given` that is not in `known`; `where` says whose argument it is."""
    known = sorted(known)
    for name in given:
        if name not in known:
            near = nearest(name, known)
            hint = f"did you mean {near!r}?" if near else f"expected one of {', '.join(known)}"
            raise TypeError(f"{where}: unknown argument {name!r:.80}; {hint}")


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The one that may have been meant. A name of many characters, which difflib would index one by one, is like
    none."""
    near = difflib.get_close_matches(name, known, n=1) if len(name) <= LONGEST_NAME else []
    return near[0] if near else None


def expect_gib(name: str, value: float) -> None:
    """Raises ValueError."""
    if not isinstance(value, Real) or isinstance(value, bool) or not 0 <= value < math.inf:
        raise ValueError(f"{name}: expected a number of GiB, at least 0, got {value!r}")


def suggest_names(cls: type[T]) -> type[T]:
    """Decorates a dataclass: an unknown keyword raises TypeError with the nearest field's name.

    Where the class has a table ``VLLM_ONLY``, those arguments of vLLM's pass if they ask for nothing special.
    """
    init = cls.__init__
    known = inspect.signature(init).parameters.keys() - {"self"}
    vllm_only: Mapping[str, Collection[Any]] = getattr(cls, "VLLM_ONLY", {})

    @functools.wraps(init)
    def checked(self: T, *args: Any, **kwargs: Any) -> None:
        if not kwargs.keys() <= known:
            kwargs = without_vllm_only(cls.__name__, kwargs, vllm_only)
            expect_known(cls.__name__, kwargs, known)
        init(self, *args, **kwargs)

    cls.__init__ = checked  # type: ignore[assignment]
    return cls


def without_vllm_only(where: str, given: Mapping[str, Any], vllm_only: Mapping[str, Collection[Any]]) -> dict[str, Any]:
    """`given` without those arguments of vLLM's that are not here, as far as their values ask for nothing special.

    vllm_only: by name, the values that ask for nothing: each name is warned of once. Raises TypeError for any other
    value.
    """
    for name in sorted(given.keys() & vllm_only.keys()):
        if given[name] not in vllm_only[name]:
            raise TypeError(f"{where}: {name} = {reprlib.repr(given[name])}: known in vLLM, not here")
        warn_of_vllm_only(where, name)
    return {name: value for name, value in given.items() if name not in vllm_only}


@functools.cache
def warn_of_vllm_only(where: str, name: str) -> None:
    logger.warning("%s: %s is vLLM's and changes nothing here", where, name)


@dataclasses.dataclass(frozen=True)
class DescribedField:
    """default: dataclasses.MISSING if the argument must be given. help: empty if there is none."""

    name: str
    type: Any
    default: Any
    help: str


def described_fields(cls: type) -> list[DescribedField]:
    """The fields of a dataclass, in the order in which it takes them."""
    hints = get_type_hints(cls, include_extras=True)
    described = []
    for field in sorted(dataclasses.fields(cls), key=lambda field: bool(field.kw_only)):
        hint, help = hints[field.name], ""
        if get_origin(hint) is Annotated:
            hint, help = get_args(hint)
        described.append(DescribedField(field.name, hint, field.default, help))
    return described


def list_fields(cls: type[T]) -> type[T]:
    """Decorates a dataclass: its docstring lists the described fields, and its signature has their types alone."""
    fields = described_fields(cls)
    listed = [
        textwrap.fill(f"{field.name}: {field.help}", 116, initial_indent=" " * 4, subsequent_indent=" " * 8)
        for field in fields
        if field.help
    ]
    cls.__doc__ = "\n".join([(cls.__doc__ or "").rstrip(), "", *listed, ""])
    types = {field.name: field.type for field in fields}
    taken = inspect.signature(cls.__init__)
    _, *parameters = taken.parameters.values()
    plain = [each.replace(annotation=types.get(each.name, each.annotation)) for each in parameters]
    cls.__signature__ = taken.replace(parameters=plain)  # type: ignore[attr-defined]
    return cls


def takes_fields_of(
    arguments: Callable[P, T],
) -> Callable[[Callable[[Self, T], None]], Callable[Concatenate[Self, P], None]]:
    """Decorates a method that takes one `arguments`, a dataclass: its callers give the dataclass's fields instead."""

    def decorate(method: Callable[[Self, T], None]) -> Callable[Concatenate[Self, P], None]:
        def with_fields(self: Self, /, *args: P.args, **kwargs: P.kwargs) -> None:
            method(self, arguments(*args, **kwargs))

        functools.update_wrapper(with_fields, method)
        taken = inspect.signature(arguments)
        own = inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)
        with_fields.__signature__ = taken.replace(parameters=[own, *taken.parameters.values()])  # type: ignore[attr-defined]
        with_fields.__doc__ = arguments.__doc__
        return with_fields

    return decorate
