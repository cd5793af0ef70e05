"""What an operator, a filter, a test or a method of a chat template costs beyond a step, by its arguments."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from pybatch.model.text.template_budget import LONGEST_INTEGER, STEP, LimitError, budget

WIDEST_PRECISION = 400


def no_cost(*args: Any, **kwargs: Any) -> float:
    return 0


def _whole(*args: Any, **kwargs: Any) -> float:
    """For what reads all of its arguments, and makes no more than about that."""
    return 2 * sum(map(budget().weight, (*args, *kwargs.values())))


def _slow(*args: Any, **kwargs: Any) -> float:
    return 8 * _whole(*args, **kwargs)


def _elements(value: Any = (), *args: Any, **kwargs: Any) -> float:
    return STEP * len(value) if hasattr(value, "__len__") else STEP


def _counts(*args: object, **kwargs: object) -> int:
    """The sum of the integers among the arguments, which say how much to make, and of the lengths of texts."""
    numbers = (abs(each) if isinstance(each, int) else 0 for each in (*args, *kwargs.values()))
    return sum(numbers) + sum(len(each) for each in (*args, *kwargs.values()) if isinstance(each, str))


def _padded(text: Any, *args: Any, **kwargs: Any) -> float:
    return _whole(text) + 4 * (80 + _counts(*args, **kwargs))


def _by_line(text: Any, *args: Any, **kwargs: Any) -> float:
    """For what adds text at each line or tab."""
    written = text_of(text)
    places = 1 + sum(map(written.count, _PLACES))
    return _whole(text) + 4 * (4 + _counts(*args, **kwargs)) * places


_PLACES = "\t\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029"  # tabs, and what ends a line


def _replaced(text: Any, old: Any = "", new: Any = "", *args: Any, **kwargs: Any) -> float:
    text, old, new = text_of(text), text_of(old), text_of(new)
    return _whole(text, old) + (text.count(old) if old else len(text) + 1) * budget().weight(new)


def _joined(value: Any, d: Any = "", *args: Any, **kwargs: Any) -> float:
    separator, parts = (value, d) if isinstance(value, str) and not isinstance(d, str) else (d, value)
    return 2 * _whole(parts) + 2 * _elements(parts) / STEP * budget().weight(separator)


def _split(text: str, sep: Any = None, *args: Any, **kwargs: Any) -> float:
    return _whole(text) + STEP * (text.count(sep) if isinstance(sep, str) and sep else len(text) / 2)


def _grouped(value: Any, *args: Any, **kwargs: Any) -> float:
    return _elements(value) + STEP * _counts(*args, **kwargs)


def _rounded(value: Any, *args: Any, **kwargs: Any) -> float:
    if not isinstance(value, int | float) or _counts(*args, **kwargs) > WIDEST_PRECISION:
        raise LimitError("it rounds what is not a number, or to more places than a number has")
    return 0


def _summed(value: Any, attribute: Any = None, start: Any = 0) -> float:
    return _whole(value) if isinstance(start, int | float) else _elements(value) * _whole(value)


def _json(value: Any, *args: Any, indent: Any = None, separators: Any = (), **kwargs: Any) -> float:
    """With an indent, what a deeper level adds is paid for as it is written."""
    return 2 * _whole(value) * (1 + _counts(indent, *(separators or ())))


def format_cost(text: Any, *args: Any, **kwargs: Any) -> float:
    form = text_of(text)
    if re.search(r"%[-#0 +]*\*|%[-#0 +]*\d*\.\*", form):
        raise LimitError("it formats with a width that is not written out")
    fields = form.count("%") + form.count("{") + 1
    return width_of(form) + len(form) + 2 * fields * _whole(*args, **kwargs)


def text_of(value: Any) -> str:
    """str(value), paid for first."""
    if not isinstance(value, str):
        budget().spend(4 * budget().weight(value))
    return str(value)


def width_of(form: str) -> int:
    """At least the sum of the widths and precisions in a format."""
    return sum(int(number) if len(number) < 10 else 10**10 for number in re.findall(r"\d+", form))


def _times(left: Any, right: Any) -> float:
    pairs = ((left, right), (right, left))
    found = [(each, n) for each, n in pairs if isinstance(each, str | list | tuple) and isinstance(n, int)]
    return sum(float(budget().weight(each) * max(number, 0)) for each, number in found)


def _plus(left: Any, right: Any) -> float:
    return sum(_elements(each) for each in (left, right) if isinstance(each, list | tuple))


def _power(left: Any, right: Any) -> float:
    if isinstance(left, int) and isinstance(right, int) and left.bit_length() * abs(right) > LONGEST_INTEGER:
        raise LimitError(f"it makes an integer of more than {LONGEST_INTEGER} bits")
    return 0


def _modulo(left: Any, right: Any = 2) -> float:
    return format_cost(left, right) if isinstance(left, str) else 0


OPERATOR_COSTS: dict[str, Callable[[Any, Any], float]] = {"*": _times, "+": _plus, "**": _power, "%": _modulo}

_COSTS: dict[Callable[..., float], str] = {
    no_cost: (
        "abs attr boolean callable copy count d default defined endswith false first float get "
        "integer items keys last length mapping none number random safe sameas sequence startswith test "
        "true undefined values iterable filter escaped"
    ),
    _elements: "list map select reject selectattr rejectattr reverse",
    _slow: "title capitalize wordcount urlencode escape e forceescape sort dictsort groupby unique min max",
    _padded: "center ljust rjust zfill",
    _by_line: "expandtabs indent",
    _modulo: "divisibleby even odd",
    _replaced: "replace",
    _joined: "join",
    _split: "split rsplit splitlines",
    _grouped: "batch slice",
    _rounded: "round",
    _summed: "sum",
    _json: "tojson",
    format_cost: "format",
}
_COST_OF = {name: cost for cost, names in _COSTS.items() for name in names.split()}


def cost_of(name: str) -> Callable[..., float]:
    """The cost of a filter, a test or a method beyond a step. Most read all of their arguments and make no more."""
    return _COST_OF.get(name, _whole)


METHODS = frozenset(
    [
        "bit_length",
        "capitalize",
        "casefold",
        "center",
        "copy",
        "count",
        "endswith",
        "expandtabs",
        "find",
        "get",
        "index",
        "is_integer",
        "isalnum",
        "isalpha",
        "isascii",
        "isdecimal",
        "isdigit",
        "isidentifier",
        "islower",
        "isnumeric",
        "isprintable",
        "isspace",
        "istitle",
        "isupper",
        "items",
        "join",
        "keys",
        "ljust",
        "lower",
        "lstrip",
        "partition",
        "removeprefix",
        "removesuffix",
        "replace",
        "rfind",
        "rindex",
        "rjust",
        "rpartition",
        "rsplit",
        "rstrip",
        "split",
        "splitlines",
        "startswith",
        "strip",
        "swapcase",
        "title",
        "upper",
        "values",
        "zfill",
    ]
)
