"""Values out of a file's metadata, each checked for its type and range: such files hold anything."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final, NoReturn, TypeVar, cast

from pybatch.model.errors import ModelError

D = TypeVar("D")
C = TypeVar("C", int, str)
MAX_IDS = 4096  # of a list of token ids


class _Required:
    """Stands for the default of a key that must be there."""


REQUIRED: Final = _Required()


class Fields:
    """The keys and values of `where`, such as "config.json of llama-7b". Every method raises ModelError, with the key
    and what was expected, for a value that is not of its kind.

    A key that is absent gives the default; null does so only where nullable, and for flags. prefix: of every key in
    values. names: what keys are called in errors where they are not called by their own name. asked: the keys that
    were asked for so far.
    """

    def __init__(
        self, values: Mapping[str, Any], where: str, prefix: str = "", names: Mapping[str, str] | None = None
    ) -> None:
        self._values, self.where, self._prefix, self._names = values, where, prefix, names or {}
        self.asked: set[str] = set()

    def __contains__(self, key: str) -> bool:
        self.asked.add(key)
        return self._prefix + key in self._values

    def get(self, key: str) -> Any:
        """The value as it is; None if there is none."""
        self.asked.add(key)
        return self._values.get(self._prefix + key)

    def name(self, key: str) -> str:
        """As errors call the key."""
        return self._names.get(key, self._prefix + key)

    def integer(
        self, key: str, default: D | _Required = REQUIRED, *, low: int = 1, high: int, nullable: bool = False
    ) -> int | D:
        value = self._value(key, default, nullable)
        if value is default:
            return cast("D", value)
        whole = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
        if not whole or isinstance(value, bool) or not low <= value <= high:
            self._refuse(key, f"an integer from {low} to {high}", value)
        return int(value)

    def number(
        self,
        key: str,
        default: D | _Required = REQUIRED,
        *,
        above: float = 0.0,
        high: float = 1e30,
        nullable: bool = False,
    ) -> float | D:
        value = self._value(key, default, nullable)
        if value is default:
            return cast("D", value)
        if not isinstance(value, int | float) or isinstance(value, bool) or not above < value <= high:
            self._refuse(key, f"a number above {above:g} and at most {high:g}", value)
        return float(value)

    def flag(self, key: str, default: bool = False) -> bool:
        value = self._value(key, default, nullable=True)
        if not isinstance(value, bool):
            self._refuse(key, "true or false", value)
        return value

    def text(self, key: str, default: D | _Required = REQUIRED) -> str | D:
        value = self._value(key, default, nullable=True)
        if value is not default and not isinstance(value, str):
            self._refuse(key, "text", value)
        return cast("str", value)

    def choice(self, key: str, choices: Sequence[C], default: C | _Required = REQUIRED) -> C:
        value = self._value(key, default, nullable=True)
        if isinstance(value, bool) or value not in choices:
            self._refuse(key, f"one of {', '.join(map(str, choices))}", value)
        return cast("C", value)

    def expect(self, **values: object) -> None:
        """Raises ModelError where one of these keys is there with another value."""
        for key, value in values.items():
            if (found := self.get(key)) not in (None, value):
                self._refuse(key, json.dumps(value), found)

    def pair(self, key: str) -> tuple[int, int] | None:
        """Two sizes, or none."""
        value = self._value(key, None, nullable=True)
        if value is None:
            return None
        if not isinstance(value, list) or len(value) != 2 or not all(type(size) is int and size > 0 for size in value):
            self._refuse(key, "a list of two sizes", value)
        return value[0], value[1]

    def mapping(self, key: str) -> Mapping[str, Any]:
        """{} if there is none."""
        value = self._value(key, {}, nullable=True)
        if not isinstance(value, Mapping):
            self._refuse(key, "an object", value)
        return value

    def texts(self, key: str, most: int) -> list[str]:
        """A list of texts of at most so many characters each."""
        value = self._value(key, REQUIRED, nullable=True)
        if not isinstance(value, list) or not all(isinstance(text, str) and len(text) <= most for text in value):
            self._refuse(key, f"a list of texts of at most {most:,} characters", value)
        return value

    def numbers(self, key: str, count: int) -> tuple[float, ...]:
        """A list of so many positive numbers."""
        value = self._value(key, REQUIRED, nullable=True)
        plain = isinstance(value, list) and all(isinstance(x, int | float) and not isinstance(x, bool) for x in value)
        if not plain or len(value) != count or not all(0 < x < 1e30 for x in value):
            self._refuse(key, f"a list of {count} positive numbers", value)
        return tuple(map(float, value))

    def flags(self, key: str, count: int) -> list[bool] | None:
        """A list of so many truth values, 0 or 1; None if there is none."""
        value = self._value(key, None, nullable=True)
        if value is None:
            return None
        if not isinstance(value, list) or len(value) != count or not all(x in (0, 1) for x in value):
            self._refuse(key, f"a list of {count} zeros and ones, one a layer", value)
        return list(map(bool, value))

    def ids(self, key: str) -> tuple[int, ...]:
        """Token ids: one, a list of them, or none. Whether the vocabulary has them is not checked here."""
        value = self._value(key, None, nullable=True)
        found = [] if value is None else value if isinstance(value, list) else [value]
        if len(found) > MAX_IDS or not all(isinstance(i, int) and not isinstance(i, bool) for i in found):
            self._refuse(key, "a token id or a list of token ids", value)
        return tuple(found)

    def _value(self, key: str, default: object, nullable: bool) -> Any:
        self.asked.add(key)
        value = self._values.get(self._prefix + key, default)
        if value is None and nullable:
            value = default
        if isinstance(value, _Required):
            raise ModelError(f"{self.where}: expected {self.name(key)}, which is not there")
        return value

    def _refuse(self, key: str, expected: str, value: object) -> NoReturn:
        raise ModelError(f"{self.where}: {self.name(key)}: expected {expected}, got {short(value)}")


def short(value: object, most: int = 60) -> str:
    """A value as an error names it."""
    try:
        text = "null" if value is None else repr(value)
    except (ValueError, RecursionError):  # an integer of thousands of digits, lists in lists
        text = f"a huge {type(value).__name__}"
    return text if len(text) <= most else text[:most] + "..."
