"""Jinja templates, in the sandbox and within the budget that chat templates have."""

from __future__ import annotations

import difflib
import posixpath
import re
import traceback
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jinja2
from jinja2 import meta, nodes
from jinja2.lexer import TokenStream

from pybatch.api.inputs import Message
from pybatch.model.text.bounded_templates import BoundedEnvironment
from pybatch.model.text.template_budget import LimitError, new_budget
from pybatch.prompts.blocks import marked, messages_of, unmarked
from pybatch.prompts.errors import PromptError, Text
from pybatch.prompts.rendering import Row, RowTemplate

Read = Callable[[str], str]
"""The text of a file by its path from the root, with / between folders. Raises PromptError if it may not be read."""


class JinjaTemplate(RowTemplate):
    def __init__(self, text: Text, path: str, read: Read) -> None:
        """path: of the text from the root. read: of files that are included. Raises PromptError."""
        self._path, self._text = path, text
        self._included: dict[str, str] = {}
        self._environment = PromptEnvironment(self._load)
        self._read = read
        trees = list(self._trees())
        self.files: Mapping[str, str] = self._included
        stored = {each.name for tree in trees for each in tree.find_all(nodes.Name) if each.ctx == "store"}
        wanted = set(meta.find_undeclared_variables(trees[0]))
        for tree in trees[1:]:
            wanted |= meta.find_undeclared_variables(tree) - stored
        order = [each.name for tree in trees for each in tree.find_all(nodes.Name)]
        named = [name for name in dict.fromkeys(order) if name in wanted]
        guarded = {name for tree in trees for name in names_with_a_default(tree)}
        self.variables = tuple(name for name in named if name not in guarded)
        self.optional = tuple(name for name in named if name in guarded)
        self._template = self._compiled()

    def _fill(self, row: Row) -> str | list[Message]:
        try:
            with new_budget(row):
                text = self._template.render(row)
        except LimitError as error:
            raise self._error(error, f"{error}".replace("a chat can", "a prompt can")) from None
        except RecursionError:
            raise PromptError("the template recurses too deep", file=self._text.file) from None
        except Exception as error:  # a template is code, and may fail in any way
            kind = "" if isinstance(error, jinja2.TemplateError) else f"{type(error).__name__}: "
            raise self._error(error, f"{kind}{unmarked(str(error))}") from None
        return messages_of(text, self._text.file)

    def _error(self, error: Exception, message: str) -> PromptError:
        """With the place in the template where it came up: the line, and the first tag on it."""
        line = None
        name = self._path
        for frame in traceback.extract_tb(error.__traceback__):
            if frame.filename == self._path or frame.filename in self._included:
                name, line = frame.filename, frame.lineno
        return self._placed(message, name, line, None)

    def _placed(self, message: str, name: str, line: int | None, column: int | None) -> PromptError:
        """line, column: in the template's text, which in the prompt's own file begins behind the front matter."""
        text = self._text if name == self._path else Text(name, self._included[name])
        if line is None:
            return PromptError(message, file=text.file)
        lines = text.text.split("\n")
        if column is None:
            found = [at for at in map(lines[min(line, len(lines)) - 1].find, ("{{", "{%")) if at >= 0]
            column = min(found, default=0) + 1
        offset = sum(len(each) + 1 for each in lines[: line - 1]) + column - 1
        return text.error(message, min(offset, len(text.text)))

    def _trees(self) -> Iterator[nodes.Template]:
        """Of the template, and of all that it includes, each once."""
        waiting, seen = [self._path], {self._path}
        while waiting:
            name = waiting.pop(0)
            tree = self._parsed(name, self._source(name))
            self._expect_known(name, tree)
            yield tree
            for each in tree.find_all((nodes.Include, nodes.Import, nodes.FromImport, nodes.Extends)):
                for other in self._referenced(name, each):
                    if other not in seen:
                        seen.add(other)
                        self._included[other] = self._read_for(name, each, other)
                        waiting.append(other)

    def _expect_known(self, name: str, tree: nodes.Template) -> None:
        kinds: tuple[tuple[Any, str, Any], ...] = (
            (nodes.Filter, "filter", self._environment.filters),
            (nodes.Test, "test", self._environment.tests),
        )
        for kind, what, known in kinds:
            for node in tree.find_all(kind):
                if node.name not in known:
                    near = difflib.get_close_matches(node.name, known, n=1)
                    hint = f"; did you mean {near[0]!r}?" if near else ""
                    raise self._at(f"there is no {what} {node.name!r}{hint}", name, node)

    def _referenced(self, name: str, node: Any) -> Iterator[str]:
        constant = node.template.value if isinstance(node.template, nodes.Const) else None
        names = [constant] if isinstance(constant, str) else constant
        if isinstance(node.template, nodes.Tuple | nodes.List):
            names = [each.value if isinstance(each, nodes.Const) else None for each in node.template.items]
        for each in names or [None]:
            if not isinstance(each, str):
                message = "expected the included file's name as text, since a prompt's version depends on its includes"
                raise self._at(message, name, node)
            yield self._environment.join_path(each, name)

    def _read_for(self, name: str, node: nodes.Node, other: str) -> str:
        try:
            return self._read(other)
        except PromptError as error:
            raise self._at(error.message, name, node) from None

    def _at(self, message: str, name: str, node: nodes.Node) -> PromptError:
        return self._placed(message, name, node.lineno, getattr(node.lineno, "column", None))

    def _parsed(self, name: str, source: str) -> nodes.Template:
        try:
            return self._environment.parse(marked(source), name, name)
        except jinja2.TemplateSyntaxError as error:
            line = error.lineno
            column = line.column if isinstance(line, Position) else self._environment.reached(int(line))
            raise self._placed(said(error), name, int(line), column) from None
        except RecursionError:
            raise PromptError("the template is nested too deep", file=self._text.file) from None

    def _compiled(self) -> jinja2.Template:
        try:
            return self._environment.get_template(self._path)
        except jinja2.TemplateSyntaxError as error:  # an unknown filter, two blocks of a name
            line = error.lineno
            column = line.column if isinstance(line, Position) else None
            raise self._placed(said(error), error.name or self._path, int(line), column) from None
        except RecursionError:
            raise PromptError("the template is nested too deep", file=self._text.file) from None
        except (SyntaxError, ValueError, jinja2.TemplateError, LimitError) as error:  # of the Python that it becomes
            raise PromptError(f"not a template that can be compiled: {error}", file=self._text.file) from None

    def _source(self, name: str) -> str:
        return self._text.text if name == self._path else self._included[name]

    def _load(self, name: str) -> tuple[str, str, Callable[[], bool]] | None:
        if name != self._path and name not in self._included:
            return None
        return marked(self._source(name)), name, lambda: True


class Position(int):
    """A line's number that knows the column too. Jinja carries the lines of its tokens into its nodes and errors."""

    column: int

    @classmethod
    def of(cls, line: int, column: int) -> Position:
        made = cls(line)
        made.column = column
        return made


class PromptEnvironment(BoundedEnvironment):
    def __init__(self, load: Callable[[str], Any]) -> None:
        super().__init__(
            loader=jinja2.FunctionLoader(load),
            undefined=jinja2.StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=["jinja2.ext.loopcontrols"],
        )
        self._source, self._cursor = "", 0

    def join_path(self, template: str, parent: str) -> str:
        """Names of includes are relative to the file that they stand in."""
        return posixpath.normpath(posixpath.join(posixpath.dirname(parent), template))

    def reached(self, line: int) -> int:
        """The column behind the last token that was read, where it is in this line; else the line's first."""
        before = self._source[: self._cursor]
        return self._cursor - before.rfind("\n") if before.count("\n") == line - 1 else 1

    def _tokenize(
        self, source: str, name: str | None, filename: str | None = None, state: str | None = None
    ) -> TokenStream:
        source = str(self.preprocess(source, name, filename))
        tokens = self._placed(source, self.lexer.tokeniter(source, name, filename, state))
        return TokenStream(self.lexer.wrap(tokens, name, filename), name, filename)

    def _placed(self, source: str, tokens: Iterator[tuple[int, str, str]]) -> Iterator[tuple[int, str, str]]:
        """The tokens with their columns. Between two of them Jinja drops white space alone."""
        self._source, self._cursor = source, 0
        for line, token, value in tokens:
            at = self._source.find(value, self._cursor)
            if at >= 0:
                self._cursor = at + len(value)
            start = max(at, 0)
            yield Position.of(line, start - self._source.rfind("\n", 0, start)), token, value


def said(error: jinja2.TemplateSyntaxError) -> str:
    """What is wrong, without a position of Jinja's own."""
    return unmarked(re.sub(r" at \d+$", "", error.message or "not a template"))


def names_with_a_default(tree: nodes.Template) -> Iterator[str]:
    """Of variables that the template asks about, or has a value for, where a row has none."""
    for node in tree.find_all((nodes.Filter, nodes.Test)):
        if node.name in ("default", "d", "defined", "undefined") and isinstance(node.node, nodes.Name):
            yield node.node.name
