"""Jinja in a sandbox with a budget: a template comes with a model, and may neither escape nor run without end.

Whatever a template does is paid for before it is done: a step (a loop's pass, a call, a filter), and the size of what
an operation reads and makes. The generated code, the operators and all that can be called go through here, so that
no thread, timer or limit of the process is needed, and what a template may do depends on the template and its
arguments alone. A limit of processor time stands behind it.
"""

from __future__ import annotations

import functools
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, MappingView, Sequence, Set
from contextlib import contextmanager
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.compiler import CodeGenerator, operators
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment, SandboxedFormatter
from jinja2.utils import Namespace, pass_context

STEP = 64  # the cost of a step, or of an element of a list; that of a character is 1, or 4 if it is not ASCII
CALL = 192  # what a call costs beyond a step
BASE, PER_INPUT = 64_000_000, 200  # a rendering may spend the first, and so much for each unit of its arguments
LARGEST = 1 / 4  # of the budget, which one value may weigh
SECONDS = 1.0  # of processor time
LONGEST_SOURCE = 65_536  # characters
LONGEST_INTEGER = 4096  # bits
WIDEST_PRECISION = 400


class LimitError(RuntimeError):
    """A template that spends more than its budget."""


class Budget:
    """What one rendering may still spend."""

    def __init__(self, *arguments: object) -> None:
        self._weights: dict[int, tuple[object, int]] = {}  # of containers, which are kept so that ids stay theirs
        self._left = self._largest = float("inf")
        self._left = BASE + PER_INPUT * sum(self.weight(argument) for argument in arguments)
        self._largest = self._left * LARGEST
        self._begin, self._look_at = time.thread_time(), time.monotonic() + SECONDS

    def spend(self, cost: float) -> None:
        self._left -= cost
        if self._left < 0:
            raise LimitError("it takes more steps, or makes more text, than a chat can need")

    def step(self, cost: float = 0) -> None:
        """Spends a step, and what it costs beyond that."""
        self.spend(STEP + cost)
        if time.monotonic() > self._look_at:
            used = time.thread_time() - self._begin
            if used > SECONDS:
                raise LimitError(f"it takes more than {SECONDS:g} s")
            self._look_at = time.monotonic() + SECONDS - used

    def weight(self, value: Any) -> int:
        """The size of a value with everything in it; what is in it twice counts twice."""
        kind = type(value)
        if kind is str or isinstance(value, str):
            return len(value) if value.isascii() else 4 * len(value)
        if kind is dict or kind is list or _is_container(kind):  # type: ignore[arg-type]
            known = self._weights.get(id(value))
            if known is None:
                known = self._weights[id(value)] = (value, self._weigh(value))
            return known[1]
        if isinstance(value, int) and value.bit_length() > LONGEST_INTEGER:
            raise LimitError(f"it makes an integer of more than {LONGEST_INTEGER} bits")
        return STEP

    def take(self, value: Any) -> Any:
        """Returns a new value. Raises LimitError if it is too large."""
        weight = self.weight(value)
        if isinstance(value, str):
            self.spend(weight)
        if weight > self._largest:
            raise LimitError("it makes a value larger than a chat can need")
        return value

    def _weigh(self, container: Any) -> int:
        self.spend(STEP * len(container))
        parts: list[Iterable[object]] = [container]
        if isinstance(container, Mapping):
            parts.append(container.values())
        return STEP + sum(STEP + self.weight(each) for part in parts for each in part)


@functools.lru_cache(maxsize=1024)
def _is_container(kind: type) -> bool:
    return issubclass(kind, _CONTAINERS) and kind is not range


_CONTAINERS = (Mapping, MappingView, Sequence, Set)


_current = threading.local()


def budget() -> Budget:
    current: Budget = _current.budget
    return current


@contextmanager
def new_budget(*arguments: object) -> Iterator[None]:
    """The budget of one rendering with these arguments, on this thread."""
    _current.budget = Budget(*arguments)
    try:
        yield
    finally:
        del _current.budget


class SteppingCode(CodeGenerator):
    """Generates Python that pays for each block it enters, and that hands literals, slices, ~ and comparisons to the
    environment, which does not see them otherwise."""

    def blockvisit(self, nodes: Iterable[nodes.Node], frame: Any) -> None:
        self.writeline("environment.step()")
        super().blockvisit(nodes, frame)

    def visit_List(self, node: nodes.List, frame: Any) -> None:  # noqa: N802
        self._through("made", super().visit_List, node, frame)

    def visit_Dict(self, node: nodes.Dict, frame: Any) -> None:  # noqa: N802
        self.write("environment.made({")
        for item in node.items:
            self._through("read", self.visit, item.key, frame)  # hashing takes time in proportion to its size
            self.write(": ")
            self.visit(item.value, frame)
            self.write(", ")
        self.write("})")

    def visit_Tuple(self, node: nodes.Tuple, frame: Any) -> None:  # noqa: N802
        if node.ctx == "load":
            self._through("made", super().visit_Tuple, node, frame)
        else:
            super().visit_Tuple(node, frame)

    def visit_Getitem(self, node: nodes.Getitem, frame: Any) -> None:  # noqa: N802
        if isinstance(node.arg, nodes.Slice):
            self._through("made", super().visit_Getitem, node, frame)
        else:
            super().visit_Getitem(node, frame)

    def visit_Concat(self, node: nodes.Concat, frame: Any) -> None:  # noqa: N802
        self.write("environment.made((markup_join if context.eval_ctx.autoescape else str_join)((")
        for each in node.nodes:
            self._through("piece", self.visit, each, frame)
            self.write(", ")
        self.write(")))")

    def visit_Compare(self, node: nodes.Compare, frame: Any) -> None:  # noqa: N802
        self.write("(")
        self._through("read", self.visit, node.expr, frame)
        for operand in node.ops:
            self.write(f" {operators[operand.op]} ")
            self._through("read", self.visit, operand.expr, frame)
        self.write(")")

    def _through(self, method: str, visit: Callable[..., None], node: nodes.Node, frame: Any) -> None:
        self.write(f"environment.{method}(")
        visit(node, frame)
        self.write(")")


class BoundedEnvironment(ImmutableSandboxedEnvironment):
    """Renders only within new_budget."""

    code_generator_class = SteppingCode
    intercepted_binops = frozenset(ImmutableSandboxedEnvironment.default_binop_table)

    def __init__(self, **options: Any) -> None:
        super().__init__(optimized=False, finalize=_printed, **options)  # optimized would fold constants unpaid
        for name in ("pprint", "striptags", "urlize", "wordwrap", "xmlattr"):  # for web pages
            del self.filters[name]
        for table in (self.filters, self.tests):
            table.update({name: paid(function, cost_of(name)) for name, function in list(table.items())})
        del self.globals["lipsum"]
        self.globals.update(namespace=QuietNamespace, dict=_new_dict)  # the class has methods that change dicts

    def compile_source(self, source: str) -> jinja2.Template:
        if len(source) > LONGEST_SOURCE:
            raise LimitError(f"expected at most {LONGEST_SOURCE:,} characters, got {len(source):,}")
        return self.from_string(source)

    # ---- what generated code calls ----

    def step(self) -> None:
        budget().step()

    def made(self, value: Any) -> Any:
        return budget().take(value)

    def read(self, value: Any) -> Any:
        budget().spend(budget().weight(value) / 8)
        return value

    def printed(self, value: Any) -> str:
        """What {{ }} writes of a value."""
        return value if isinstance(value, str) else _text(value)

    def piece(self, value: Any) -> Any:
        """What ~ makes text of."""
        return budget().take(self.printed(value))

    def concat(self, pieces: Iterable[str]) -> str:
        return "".join(map(budget().take, pieces))

    def getitem(self, obj: Any, argument: Any) -> Any:
        if not isinstance(argument, str | int):
            self.read(argument)  # its hash
        return super().getitem(obj, argument)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        budget().spend(OPERATOR_COSTS.get(operator, _nothing)(left, right))
        return budget().take(super().call_binop(context, operator, left, right))

    def call(self, context: Context, obj: Any, *args: Any, **kwargs: Any) -> Any:
        budget().step(CALL)
        owner, name = getattr(obj, "__self__", None), getattr(obj, "__name__", "")
        if isinstance(owner, _BUILT_IN):
            if name not in METHODS:
                raise LimitError(f"it calls {type(owner).__name__}.{name}, which chat templates have no use for")
            budget().spend(cost_of(name)(owner, *args, **kwargs))
        return _taken(super().call(context, obj, *args, **kwargs))

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        wrapped = super().wrap_str_format(value)
        if wrapped is None:
            return None

        def formatted(*args: Any, **kwargs: Any) -> str:
            budget().spend(_formatted(value.__self__, *args, **kwargs))
            text: str = budget().take(BoundedFormatter(self).vformat(value.__self__, *_fields(value, args, kwargs)))
            return text

        return formatted


class BoundedFormatter(SandboxedFormatter):
    def format_field(self, value: Any, format_spec: str) -> Any:
        budget().spend(_width(format_spec) + budget().weight(value))
        return super().format_field(value, format_spec)


class QuietNamespace(Namespace):
    """Its text leaves out its attributes, which can be nested after their size was checked."""

    def __repr__(self) -> str:
        return "<Namespace>"


def paid(function: Callable[..., Any], cost: Callable[..., float]) -> Callable[..., Any]:
    """The filter or test, charging a step and what `cost` makes of its arguments."""
    passed = 1 if hasattr(function, "jinja_pass_arg") else 0  # the context or environment comes first

    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        budget().step(cost(*args[passed:], **kwargs))
        return _taken(function(*args, **kwargs))

    return wrapper


def _taken(result: Any) -> Any:
    """The result of a call. A generator is run to its end, so that it is paid for here."""
    return budget().take(list(map(budget().take, result)) if isinstance(result, _GENERATOR) else result)


_GENERATOR = type(_ for _ in ())
_BUILT_IN = (str, bytes, int, float, complex, list, tuple, dict, set, frozenset)


@pass_context
def _printed(context: Context, value: Any) -> Any:
    return context.environment.printed(value)  # type: ignore[attr-defined]


def _new_dict(*args: Any, **kwargs: Any) -> dict[Any, Any]:
    return dict(*args, **kwargs)


def _fields(method: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], Mapping[str, Any]]:
    if method.__name__ == "format":
        return args, kwargs
    (mapping,) = args
    return (), mapping


# ---- what operations cost beyond a step, by their arguments ----


def _nothing(*args: Any, **kwargs: Any) -> float:
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
    written = _text(text)
    places = 1 + sum(map(written.count, _PLACES))
    return _whole(text) + 4 * (4 + _counts(*args, **kwargs)) * places


_PLACES = "\t\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029"  # tabs, and what ends a line


def _replaced(text: Any, old: Any = "", new: Any = "", *args: Any, **kwargs: Any) -> float:
    text, old, new = _text(text), _text(old), _text(new)
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


def _formatted(text: Any, *args: Any, **kwargs: Any) -> float:
    form = _text(text)
    if re.search(r"%[-#0 +]*\*|%[-#0 +]*\d*\.\*", form):
        raise LimitError("it formats with a width that is not written out")
    fields = form.count("%") + form.count("{") + 1
    return _width(form) + len(form) + 2 * fields * _whole(*args, **kwargs)


def _text(value: Any) -> str:
    """str(value), paid for first."""
    if not isinstance(value, str):
        budget().spend(4 * budget().weight(value))
    return str(value)


def _width(form: str) -> int:
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
    return _formatted(left, right) if isinstance(left, str) else 0


OPERATOR_COSTS: dict[str, Callable[[Any, Any], float]] = {"*": _times, "+": _plus, "**": _power, "%": _modulo}

_COSTS: dict[Callable[..., float], str] = {
    _nothing: (
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
    _formatted: "format",
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
