"""The types of a table's columns, found from values in JSON's types."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

MAX_FIELDS = 256  # of an object that gets a type of its own; one with more is a mapping, and becomes text
MAX_DEPTH = 16  # of objects and lists with types of their own
EXACT = 1 << 53  # the first integer whose successor no float holds

# The kinds of scalars. LONG: integers that a float may not hold. JSON: JSON's text, for what has no common type.
NULL, BOOL, INT, LONG, FLOAT, TEXT, JSON = "null", "bool", "int", "long", "float", "text", "json"
WIDER = {frozenset((INT, LONG)): LONG, frozenset((INT, FLOAT)): FLOAT}


@dataclass(slots=True)
class ListKind:
    item: Kind


@dataclass(slots=True)
class ObjectKind:
    fields: dict[str, Kind]


Kind = str | ListKind | ObjectKind


def widen(kind: Kind, value: Any, depth: int = 0) -> Kind:
    """The narrowest kind for the value and for what `kind` is for, which may be changed in place.

    Does not depend on the order in which values come."""
    if value is None or kind == JSON:
        return kind
    if isinstance(value, dict):
        return widen_object(kind, value, depth)
    if isinstance(value, list):
        return widen_list(kind, value, depth)
    return wider(kind, scalar_kind(value))


def scalar_kind(value: Any) -> str:
    if isinstance(value, str):
        return TEXT
    if isinstance(value, bool):
        return BOOL
    if isinstance(value, float):
        return FLOAT
    return INT if -EXACT <= value <= EXACT else LONG if -(1 << 63) <= value < 1 << 63 else JSON


def wider(kind: Kind, other: str) -> Kind:
    """The kind for the values of both. other: of a scalar."""
    if kind in (NULL, other):
        return other
    return WIDER.get(frozenset((kind, other)), JSON) if isinstance(kind, str) else JSON


def widen_list(kind: Kind, value: list[Any], depth: int) -> Kind:
    if kind == NULL and depth < MAX_DEPTH:
        kind = ListKind(NULL)
    if not isinstance(kind, ListKind):
        return JSON
    for item in value:
        kind.item = widen(kind.item, item, depth + 1)
    return kind


def widen_object(kind: Kind, value: dict[str, Any], depth: int) -> Kind:
    if kind == NULL and depth < MAX_DEPTH:
        kind = ObjectKind({})
    if not isinstance(kind, ObjectKind):
        return JSON
    fields = kind.fields
    for name, item in value.items():
        fields[name] = widen(fields.get(name, NULL), item, depth + 1)
    return kind if len(fields) <= MAX_FIELDS else JSON


def column_kinds(
    rows: Iterable[Mapping[str, Any]], defaults: Mapping[str, Kind] = MappingProxyType({})
) -> dict[str, Kind]:
    """Of the columns that the rows have, in the order in which these appear.

    defaults: of columns that come first, whether there are any or not, for those without values."""
    found: dict[str, Kind] = dict.fromkeys(defaults, NULL)
    for row in rows:
        for name, value in row.items():
            found[name] = widen(found.get(name, NULL), value)
    return {name: settled(defaults.get(name, kind) if kind == NULL else kind) for name, kind in found.items()}


def settled(kind: Kind) -> Kind:
    """A kind that tables have: a column without values is text, as is one of objects without fields."""
    match kind:
        case "null":
            return TEXT
        case ListKind(item):
            return ListKind(settled(item))
        case ObjectKind(fields):
            odd = not fields or any(not is_unicode(name) for name in fields)
            return JSON if odd else ObjectKind({name: settled(of) for name, of in fields.items()})
    return kind


def fitted(value: Any, kind: Kind) -> Any:
    """The value, of a settled kind, with JSON's text where the kind says so."""
    if value is None:
        return None
    match kind:
        case "json":
            return json_text(value)
        case ListKind(item):
            return [fitted(inner, item) for inner in value]
        case ObjectKind(fields):
            return {name: fitted(inner, fields[name]) for name, inner in value.items()}
        case "text" if not is_unicode(value):
            return escaped(value)
    return value


def json_text(value: Any) -> str:
    return escaped(json.dumps(value, ensure_ascii=False))


def escaped(text: str) -> str:
    """The text with the escapes of unpaired surrogates, which have no UTF-8 form, in their place."""
    return text.encode(errors="backslashreplace").decode()


def is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
