"""Batching policies: who may join the batch, and when. docs/batching.md says when to use which.

A policy is a few settings, given as an object (``Static(batch_size=32)``) or as the same in text, as one flag of a
command has it ("static(batch_size=32)"). What it decides as it runs is in admission.py.
"""

from __future__ import annotations

import ast
import math
from dataclasses import dataclass, fields
from numbers import Integral, Real
from typing import Any, ClassVar


@dataclass(frozen=True)
class Policy:
    """The settings of one; bad values raise ValueError. As text it is its name, with the settings that differ from the
    defaults."""

    name: ClassVar[str]

    @property
    def batches_ahead(self) -> int:
        """How many batches of requests it should have to choose from."""
        return 2

    def __str__(self) -> str:
        given = [
            f"{each.name}={value!r}" for each in fields(self) if (value := getattr(self, each.name)) != each.default
        ]
        return f"{self.name}({', '.join(given)})" if given else self.name

    @property
    def size(self) -> int | None:
        """The requests of one batch. None: as many as the engine runs, max_num_seqs."""
        return None

    def _expect_size(self, name: str) -> None:
        value = getattr(self, name)
        if value is None:
            return
        if not isinstance(value, Integral) or isinstance(value, bool) or value < 1:
            raise ValueError(f"policy: {self.name}: {name}: expected a positive integer or None, got {value!r}")
        object.__setattr__(self, name, int(value))


@dataclass(frozen=True)
class Continuous(Policy):
    """Requests join at every step at which there is room (Orca, Yu et al. 2022)."""

    name = "continuous"


@dataclass(frozen=True)
class Static(Policy):
    """When nothing runs, batch_size requests of those that wait form a batch, and run to the end before the next one.

    by_length: the batch is the request whose turn it is and those of prompts most nearly as long; else in order of
    arrival.
    """

    batch_size: int | None = None
    by_length: bool = True
    name = "static"

    def __post_init__(self) -> None:
        self._expect_size("batch_size")
        if not isinstance(self.by_length, bool):
            raise ValueError(f"policy: static: by_length: expected True or False, got {self.by_length!r}")

    @property
    def batches_ahead(self) -> int:
        return 8 if self.by_length else 2

    @property
    def size(self) -> int | None:
        return self.batch_size


@dataclass(frozen=True)
class Dynamic(Policy):
    """As static in order of arrival, but a batch begins only when it is full (max_batch requests) or its oldest request
    has waited max_wait seconds."""

    max_batch: int | None = None
    max_wait: float = 0.05
    name = "dynamic"

    def __post_init__(self) -> None:
        self._expect_size("max_batch")
        wait = self.max_wait
        if not isinstance(wait, Real) or isinstance(wait, bool) or not 0 <= wait < math.inf:
            raise ValueError(f"policy: dynamic: max_wait: expected a number of seconds, at least 0, got {wait!r}")

    @property
    def size(self) -> int | None:
        return self.max_batch


@dataclass(frozen=True)
class Micro(Policy):
    """Groups of micro_batch requests (None: a quarter of max_num_seqs) join one after the other, each when the previous
    one has computed its prompts: while a group prefills, earlier ones decode."""

    micro_batch: int | None = None
    name = "micro"

    def __post_init__(self) -> None:
        self._expect_size("micro_batch")

    @property
    def size(self) -> int | None:
        return self.micro_batch


POLICIES: dict[str, type[Policy]] = {each.name: each for each in (Continuous, Static, Dynamic, Micro)}
_EXPECTED = f"expected one of {', '.join(map(repr, POLICIES))}, with settings as in 'static(batch_size=32)'"


def as_policy(given: str | Policy) -> Policy:
    """A policy from its text. Raises ValueError, with the setting at fault."""
    if isinstance(given, Policy):
        return given
    name, arguments = _split(given)
    kind = POLICIES[name]
    known = [field.name for field in fields(kind)]
    for setting in arguments:
        if setting not in known:
            expected = f"expected {' or '.join(known)}" if known else "expected no settings"
            raise ValueError(f"policy: {name}: {expected}, got {setting!r}")
    return kind(**arguments)


def _split(given: object) -> tuple[str, dict[str, Any]]:
    """The name of a policy that there is, and its settings."""
    refusal = ValueError(f"policy: {_EXPECTED}; got {given!r:.200}")
    if not isinstance(given, str):
        raise refusal
    try:
        tree = ast.parse(given.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise refusal from None
    match tree:
        case ast.Name(id=name) if name in POLICIES:
            return name, {}
        case ast.Call(func=ast.Name(id=name), args=[], keywords=keywords) if name in POLICIES:
            try:
                return name, {str(each.arg): ast.literal_eval(each.value) for each in keywords}
            except ValueError:
                raise refusal from None
    raise refusal
