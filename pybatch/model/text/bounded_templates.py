"""Jinja in a sandbox with a budget: a template comes with a model, and may neither escape nor run without end.

Whatever a template does is paid for before it is done. The generated code, the operators and all that can be called go
through here, so that no thread, timer or limit of the process is needed.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.compiler import CodeGenerator, operators
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment, SandboxedFormatter
from jinja2.utils import Namespace, pass_context

from pybatch.model.text.template_budget import LimitError, budget
from pybatch.model.text.template_costs import (
    METHODS,
    OPERATOR_COSTS,
    cost_of,
    format_cost,
    no_cost,
    text_of,
    width_of,
)

CALL = 192  # what a call costs beyond a step
LONGEST_SOURCE = 65_536  # characters


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
        return value if isinstance(value, str) else text_of(value)

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
        budget().spend(OPERATOR_COSTS.get(operator, no_cost)(left, right))
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
            budget().spend(format_cost(value.__self__, *args, **kwargs))
            text: str = budget().take(BoundedFormatter(self).vformat(value.__self__, *_fields(value, args, kwargs)))
            return text

        return formatted


class BoundedFormatter(SandboxedFormatter):
    def format_field(self, value: Any, format_spec: str) -> Any:
        budget().spend(width_of(format_spec) + budget().weight(value))
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
