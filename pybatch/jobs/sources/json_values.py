"""Values of any library as values that JSON has."""

from __future__ import annotations

import base64
import datetime
import enum
import json
import math
from collections.abc import Iterable, Mapping
from decimal import Decimal
from typing import Any

MAX_DEPTH = 256  # of nesting, so that whatever walks a row's values later does so within Python's recursion limit
MAX_INTEGER = 10**4300  # Python turns no longer ones into text


def json_value(value: Any, depth: int = 0) -> Any:
    """The value in JSON's types: None, bool, int, finite float, str, list, dict with str keys.

    Dates and times become ISO 8601, bytes their text or base64, a Decimal a number where a float holds it exactly, else
    its text; what is not a number or missing (NaN, NaT, NA, infinity) becomes None, and a value of an unknown type its
    str(). Raises ValueError for a value that is nested too deeply or an integer that is too long.
    """
    if value is None or value is True or value is False:
        return value
    kind = type(value)
    if kind is str:
        return value
    if kind is float:
        return value if math.isfinite(value) else None
    if kind is int:
        if -MAX_INTEGER < value < MAX_INTEGER:
            return value
        raise ValueError("an integer has more than 4,300 digits")
    if depth >= MAX_DEPTH:
        raise ValueError(f"nested more than {MAX_DEPTH} levels deep")
    if isinstance(value, Mapping):
        return {key if type(key) is str else key_text(key): json_value(item, depth + 1) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [json_value(item, depth + 1) for item in value]
    return scalar(value, depth)


def key_text(key: Any) -> str:
    """A key as text: as json.dumps writes it."""
    key = json_value(key)
    return key if isinstance(key, str) else json.dumps(key)


def scalar(value: Any, depth: int) -> Any:
    """Of the types that are met less often."""
    match value:
        case enum.Enum():
            return json_value(value.value, depth + 1)
        case str():
            return str.__str__(value)
        case int():
            return json_value(int(value), depth)
        case float():
            return json_value(float(value), depth)
        case bytes() | bytearray() | memoryview():
            return text_or_base64(bytes(value))
        case Decimal():
            return decimal(value)
        case datetime.timedelta():
            return duration(value)
        case datetime.date() | datetime.time():  # a datetime is a date
            text = value.isoformat()
            return None if text == "NaT" else text
        case set() | frozenset():  # in an order that does not change from one process to the next
            return sorted((json_value(item, depth + 1) for item in value), key=json.dumps)
    if type(value).__name__ in ("NAType", "NaTType"):  # of pandas
        return None
    library = type(value).__module__.partition(".")[0]
    if library == "numpy" and value.dtype.kind in "mM" and value.ndim == 0:
        return numpy_time(value)
    if hasattr(value, "tolist"):  # numpy's scalars and arrays, torch's tensors, the series of pandas
        plain = value.tolist()
    elif hasattr(value, "to_list"):  # the series of polars
        plain = value.to_list()
    else:
        return str(value)
    return str(value) if type(plain) is type(value) else json_value(plain, depth + 1)


def text_or_base64(value: bytes) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError:
        return base64.b64encode(value).decode()


def decimal(value: Decimal) -> float | str | None:
    if not value.is_finite():
        return None
    number = float(value)
    return number if math.isfinite(number) and Decimal(repr(number)) == value else str(value)


def duration(value: datetime.timedelta) -> str | None:
    if value != value:  # a NaT
        return None
    nanoseconds = ((value.days * 86_400 + value.seconds) * 10**6 + value.microseconds) * 1000
    return iso_duration(nanoseconds + getattr(value, "nanoseconds", 0))  # which pandas' has


def iso_duration(nanoseconds: int) -> str:
    seconds, fraction = divmod(abs(nanoseconds), 10**9)
    digits = f".{fraction:09}".rstrip("0") if fraction else ""
    return f"{'-' if nanoseconds < 0 else ''}PT{seconds}{digits}S"


def numpy_time(value: Any) -> str | None:
    """Of a numpy.datetime64 or timedelta64."""
    text = str(value)
    if text == "NaT" or value.dtype.kind == "M":
        return None if text == "NaT" else text
    try:
        return iso_duration(int(value.astype("timedelta64[ns]").astype("int64")))
    except (ValueError, TypeError, OverflowError):  # months, which have no length
        return text


def json_fields(items: Iterable[tuple[Any, Any]]) -> dict[str, Any]:
    """A row's fields in JSON's types."""
    return {key if type(key) is str else key_text(key): json_value(value, 1) for key, value in items}
