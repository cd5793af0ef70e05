"""Chat templates: Jinja with the additions of Hugging Face, in a sandbox, since a template comes with a model."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import datetime
from functools import lru_cache
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.parser import Parser

from pybatch.model.text.bounded_templates import BoundedEnvironment, paid
from pybatch.model.text.template_budget import LimitError, budget, new_budget
from pybatch.model.text.template_costs import cost_of

DEVELOPER = "developer"


def render(template: str, messages: Sequence[Mapping[str, Any]], variables: Mapping[str, Any]) -> str:
    """Renders messages. OpenAI's role developer is system where the template does not know it: many leave out messages
    of other roles. Raises ValueError where the template refuses them, fails, or takes more than its budget."""
    if DEVELOPER not in template:
        messages = [{**each, "role": "system"} if each.get("role") == DEVELOPER else each for each in messages]
    try:
        with new_budget(messages, variables):
            return _compile(template).render(messages=messages, **variables)
    except jinja2.TemplateError as error:
        raise ValueError(f"chat template: {error}") from error
    except LimitError as error:
        raise ValueError(f"chat template: {error}") from error
    except RecursionError as error:
        raise ValueError("chat template: it recurses too deep") from error
    except Exception as error:  # a template is code that came with the model, and may fail in any way
        raise ValueError(f"chat template: {type(error).__name__}: {error}") from error


def render_unfinished(template: str, messages: Sequence[Mapping[str, Any]], variables: Mapping[str, Any]) -> str:
    """As render, cut at the end of the last message's content. Raises ValueError if the template does not write it."""
    if not messages or not (content := messages[-1].get("content")):
        raise ValueError("continue_final_message: expected a last message with content, got none")
    text = render(template, [*messages[:-1], {**messages[-1], "content": _with_end_mark(content)}], variables)
    before, mark, after = text.rpartition(_END)
    if not mark:
        raise ValueError("continue_final_message: the chat template does not write the last message's content")
    return before if after.startswith(" ") else before.rstrip()  # the template has trimmed the message


def _with_end_mark(content: Any) -> Any:
    if isinstance(content, str):
        return content + _END + " "
    texts = [i for i, part in enumerate(content) if isinstance(part, Mapping) and isinstance(part.get("text"), str)]
    if not texts:
        raise ValueError("continue_final_message: expected text in the last message, got none")
    last = content[texts[-1]]
    return [*content[: texts[-1]], {**last, "text": _with_end_mark(last["text"])}, *content[texts[-1] + 1 :]]


_END = "\U000f7e4d\U000f1c20\U000f93a1"  # characters for private use


@lru_cache(maxsize=16)
def _compile(template: str) -> jinja2.Template:
    return _environment().compile_source(template)


@lru_cache(maxsize=1)
def _environment() -> BoundedEnvironment:
    environment = BoundedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[GenerationBlock, "jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = paid(_to_json, cost_of("tojson"))
    environment.globals.update(raise_exception=_raise, strftime_now=_now)
    return environment


class GenerationBlock(Extension):
    """{% generation %} ... {% endgeneration %}: marks the assistant's words for training; here it is plain text."""

    tags = {"generation"}  # noqa: RUF012  (jinja2 declares it so)

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


def _to_json(value: Any, ensure_ascii: bool = False, **options: Any) -> str:
    # jinja2's own tojson escapes for HTML.
    if options.get("indent") is None:
        return json.dumps(value, ensure_ascii=ensure_ascii, **options)
    pieces = json.JSONEncoder(ensure_ascii=ensure_ascii, **options).iterencode(value)
    return "".join(map(budget().take, pieces))


_date: ContextVar[float | None] = ContextVar("date", default=None)


@contextmanager
def dated(seconds: float | None) -> Iterator[None]:
    """In the block, on this thread, templates that tell the time tell this one, in seconds since 1970; None: now."""
    before = _date.set(seconds)
    try:
        yield
    finally:
        _date.reset(before)


def _now(form: str) -> str:
    budget().spend(256 * len(form))  # the most that strftime makes of it
    seconds = _date.get()
    return (datetime.now() if seconds is None else datetime.fromtimestamp(seconds)).strftime(form)


def _raise(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)
