"""PromptL: messages, conditions, loops, references to other prompts, and chains of <step>s."""

from __future__ import annotations

import posixpath
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pybatch.prompts.errors import PromptError, Text
from pybatch.prompts.front_matter import ALIASES
from pybatch.prompts.jinja import Read
from pybatch.prompts.promptl_runtime import Fault, runtime
from pybatch.prompts.rendering import Rendered, Row, expect_variables

NOT_SAMPLING = ("as", "isolated", "raw", "schema")  # attributes of a <step>
MOST_FILES = 256  # that a prompt may refer to


class PromptlSource:
    """A prompt that has been read, with all that it refers to. steps: the names of its answers, of which a prompt
    without <step> has one."""

    def __init__(self, text: Text, path: str, read: Read) -> None:
        """text: the whole file. path, read: as JinjaTemplate's. Raises PromptError."""
        self.text, self._path = text, path
        self._runtime = runtime()
        self.files: Mapping[str, str] = self._references(read)
        (scanned,) = self._runtime.call("scanPrompt", [self.document])
        if isinstance(scanned, Fault):
            raise scanned.error(text)
        for details in scanned["errors"]:
            raise Fault.of(details).error(text)
        self.config: Mapping[str, Any] = scanned["config"] or {}
        self.variables: tuple[str, ...] = tuple(scanned["parameters"])
        self.steps = self._steps()

    @property
    def document(self) -> dict[str, Any]:
        references = dict(self.files) or None
        return {"prompt": self.text.text, "fullPath": self._path, "references": references}

    def render(self, rows: Sequence[Row], step: int) -> list[Any | Fault]:
        """The messages and the config of a step, for rows that have the answers of those before it."""
        asked = [{**self.document, "adapter": "openai", "parameters": self._parameters(row, step)} for row in rows]
        if len(self.steps) == 1:
            return self._runtime.call("renderPrompt", asked)
        state = self._runtime.call("createChain", asked)
        state = self._next(state, [{} for _ in rows])
        for name in self.steps[:step]:
            state = self._next([each if isinstance(each, Fault) else each["chain"] for each in state],
                               [{"response": answer_of(row, name)} for row in rows])  # fmt: skip
        return state

    def _parameters(self, row: Row, step: int) -> dict[str, Any]:
        return {name: row[name] for name in self.variables if name in row}

    def _next(self, chains: Sequence[Any | Fault], responses: Sequence[Mapping[str, Any]]) -> list[Any | Fault]:
        whole = [index for index, chain in enumerate(chains) if not isinstance(chain, Fault)]
        calls = [{"chain": chains[index], **responses[index]} for index in whole]
        stepped = dict(zip(whole, self._runtime.call("stepChain", calls), strict=True))
        return [stepped.get(index, chain) for index, chain in enumerate(chains)]

    def _tree(self, text: Text, path: str, files: Mapping[str, str]) -> Mapping[str, Any]:
        asked = {"prompt": text.text, "fullPath": path, "references": dict(files) or None, "adapter": "openai"}
        (chain,) = self._runtime.call("createChain", [{**asked, "parameters": {}}])
        if isinstance(chain, Fault):
            raise chain.error(text)
        return chain["ast"]  # type: ignore[no-any-return]

    def _references(self, read: Read) -> dict[str, str]:
        """The texts of the files that <prompt path> names, and that these name, by the paths that PromptL asks for."""
        files: dict[str, str] = {}
        waiting = [(self.text, self._path)]
        while waiting:
            text, path = waiting.pop()
            for tag in elements(self._tree(text, path, {}), "prompt"):
                name = attribute(tag, "path")
                if name is None:  # which the scan reports
                    continue
                other = posixpath.normpath(posixpath.join(posixpath.dirname(path), name))
                if other in files or other == self._path:
                    continue
                if len(files) == MOST_FILES:
                    raise PromptError(f"it refers to more than {MOST_FILES} files", file=self.text.file)
                try:
                    files[other] = read(other)
                except PromptError as error:
                    raise text.error(error.message, tag["start"]) from None
                waiting.append((Text(other, files[other]), other))
        return files

    def _steps(self) -> tuple[str, ...]:
        tree = self._tree(self.text, self._path, self.files)
        found = list(elements(tree, "step"))
        if not found:
            return ("response",)
        conditional = [tag for kind in ("IfBlock", "ForBlock") for each in nodes(tree, kind)
                       for tag in elements(each, "step")]  # fmt: skip
        if conditional:
            message = "a <step> that only some rows take; expected none within if and for: all rows go step by step"
            at = conditional[0]["start"] if not self.files else 0
            raise self.text.error(message, min(at, len(self.text.text)))
        names = [attribute(tag, "as") or f"step_{number}" for number, tag in enumerate(found, start=1)]
        asks_last = any(asks(child) for child in (tree.get("children") or ())[last_step(tree) + 1 :])
        return (*names, "response") if asks_last else (*names[:-1], "response")


class PromptlTemplate:
    """One step of a prompt."""

    optional: tuple[str, ...] = ()

    def __init__(self, source: PromptlSource, step: int = 0) -> None:
        self._source, self._step = source, step
        self.variables, self.files = source.variables, source.files

    def render(self, rows: Sequence[Row]) -> list[Rendered | PromptError]:
        whole = [index for index, row in enumerate(rows) if all(name in row for name in self.variables)]
        values = self._source.render([rows[index] for index in whole], self._step)
        rendered = dict(zip(whole, map(self._rendered, values), strict=True))
        return [rendered.get(index) or self._missing(row) for index, row in enumerate(rows)]

    def check(self, row: Row) -> None:
        expect_variables(self.variables, row)

    def _missing(self, row: Row) -> PromptError:
        try:
            self.check(row)
        except PromptError as error:
            return error
        raise AssertionError("the row has all variables")

    def _rendered(self, value: Any | Fault) -> Rendered | PromptError:
        if isinstance(value, Fault):
            return value.error(self._source.text)
        if not value["messages"]:
            return PromptError("the prompt asks for nothing", file=self._source.text.file)
        return Rendered(value["messages"], self._sampling(value.get("config") or {}))

    def _sampling(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """What the step's own attributes set."""
        own = self._source.config
        return {
            ALIASES.get(name, name): value
            for name, value in config.items()
            if name not in NOT_SAMPLING and (name not in own or own[name] != value)
        }


def nodes(tree: Any, kind: str) -> Iterator[Mapping[str, Any]]:
    """Of PromptL's syntax tree, those of a type, in the order of the text."""
    waiting = [tree]
    while waiting:
        node = waiting.pop()
        if isinstance(node, Mapping):
            if node.get("type") == kind:
                yield node
            inner = [*(node.get("children") or ()), node.get("else")]
            waiting += [each for each in reversed(inner) if each]


def elements(tree: Any, name: str) -> Iterator[Mapping[str, Any]]:
    return (node for node in nodes(tree, "ElementTag") if node.get("name") == name)


def attribute(tag: Mapping[str, Any], name: str) -> str | None:
    """The value of an attribute that is text."""
    for each in tag.get("attributes") or ():
        value = each.get("value")
        if each.get("name") == name and isinstance(value, list) and all(part["type"] == "Text" for part in value):
            return "".join(part["data"] for part in value)
    return None


def last_step(tree: Mapping[str, Any]) -> int:
    """The index of the child that has the last <step> in it."""
    children = tree.get("children") or ()
    return max(index for index, child in enumerate(children) if any(elements(child, "step")))


def asks(node: Mapping[str, Any]) -> bool:
    """Whether something is said by a node behind the last step, for which the model is asked once more."""
    kind = node.get("type")
    return kind not in ("Comment", "Config") and (kind != "Text" or bool(str(node.get("data", "")).strip()))


def answer_of(row: Row, name: str) -> str:
    answer = row.get(name)
    return answer if isinstance(answer, str) else ""
