"""A prompt: its steps, what they need of a row, and which version of the text it is."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import blake2b
from typing import Any

from pybatch.api.inputs import Message
from pybatch.api.protocols.request_error import RequestError
from pybatch.api.protocols.sampling import NAMES, expect_params
from pybatch.jobs.dialects.row_params import NESTED, typed
from pybatch.prompts.blocks import with_system
from pybatch.prompts.errors import PromptError
from pybatch.prompts.front_matter import Config
from pybatch.prompts.rendering import Rendered, Row, Template

VERSION_DIGITS = 12
OF_ROWS = {*NAMES, NESTED, "custom_id", "id", "user", "ttft_target", "tpot_target"}
"""Fields that a row may have beside the variables, whatever the prompt."""


@dataclass(frozen=True)
class Step:
    """One request of a prompt. name: of the variable that its answer is for the steps behind it; of the last one
    "response". sampling: what it sets over the prompt's own."""

    name: str
    template: Template
    sampling: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Prompt:
    """A template that has been read.

    name: that it is known by. language: plain, jinja or promptl. config: what its front matter says: model, sampling
    and the like. steps: one, or of a chain several. file: that it was read from, "" for none. text: of the file.
    """

    name: str
    language: str
    text: str
    config: Config
    steps: tuple[Step, ...]
    file: str = ""

    @cached_property
    def version(self) -> str:
        """A hash of the text and of all that it includes: the same wherever the files lie."""
        files = {name: text for step in self.steps for name, text in step.template.files.items()}
        content = json.dumps([self.language, self.text, sorted(files.items())]).encode()
        return blake2b(content, digest_size=16).hexdigest()[:VERSION_DIGITS]

    @property
    def tag(self) -> str:
        """The name and the version, as results have it."""
        return f"{self.name}@{self.version}"

    @cached_property
    def variables(self) -> tuple[str, ...]:
        """The fields that a row must have."""
        return tuple(name for name in self._named("variables") if name not in self.config.defaults)

    @cached_property
    def optional(self) -> tuple[str, ...]:
        """Those that it may have."""
        given = [name for name in self._named("variables") if name in self.config.defaults]
        others = [name for name in self._named("optional") if name not in self.variables]
        return tuple(dict.fromkeys([*given, *others]))

    @property
    def is_chain(self) -> bool:
        return len(self.steps) > 1

    @property
    def answers(self) -> tuple[str, ...]:
        """The names of the answers that later steps have as variables."""
        return tuple(step.name for step in self.steps[:-1])

    def render(self, rows: Iterable[Row], step: int = 0) -> list[str | list[Message]]:
        """What the model is asked for each row: messages, or text where the template has none.

        step: of a chain, whose rows then have the answers of the steps before it too. Raises PromptError for the first
        row that it cannot be filled in with.
        """
        made: list[str | list[Message]] = []
        for number, each in enumerate(self.render_each(list(rows), step)):
            if isinstance(each, PromptError):
                raise each.of_row(number)
            made.append(each.messages)
        return made

    def render_each(self, rows: Sequence[Row], step: int = 0) -> list[Rendered | PromptError]:
        """As render, for all rows at once, each with its own error."""
        rendered = self.steps[step].template.render([self._filled(row) for row in rows])
        return [each if isinstance(each, PromptError) else self._finished(each) for each in rendered]

    def check(self, row: Row, step: int = 0) -> None:
        """Raises PromptError for a row that the step cannot be filled in with, as far as that can be told without
        taking long, and as expect_fields does."""
        self.expect_fields(row, step)
        if not self.is_chain:
            self.steps[0].template.check(self._filled(row))

    def expect_fields(self, row: Row, step: int = 0) -> None:
        """Raises PromptError for a row that lacks a variable of any step, or has a field that is an answer of this step
        or a later one, or, where the prompt is strict, fields that are no variables."""
        filled = self._filled(row)
        for name in self.variables:
            if name not in filled:
                there = ", ".join(map(repr, row)) or "nothing"
                raise PromptError(f"the prompt asks for {name!r}; the row has {there:.200}", variable=name)
        for name in self.answers[step:]:
            if name in row:
                raise PromptError(f"the row has {name!r}, which is an answer of the prompt's own", variable=name)
        if self.config.strict and (others := self.surplus(row)):
            known = ", ".join(map(repr, (*self.variables, *self.optional))) or "none"
            raise PromptError(f"the prompt has no variable {others[0]!r}; its variables: {known}", variable=others[0])

    def surplus(self, row: Row) -> list[str]:
        """The row's fields that are no variables, no sampling parameters and no names of the row itself."""
        known = {*self.variables, *self.optional, *self.answers, *OF_ROWS}
        return [name for name in row if name not in known]

    def _named(self, which: str) -> list[str]:
        names = dict.fromkeys(name for step in self.steps for name in getattr(step.template, which))
        return [name for name in names if name not in self.answers]

    def _filled(self, row: Row) -> Row:
        return {**self.config.defaults, **row} if self.config.defaults else row

    def _finished(self, rendered: Rendered) -> Rendered | PromptError:
        """With the system message, and checked sampling parameters."""
        try:
            sampling = {name: typed(name, value) for name, value in self._known(rendered.sampling)}
            expect_params(sampling)
        except RequestError as error:
            return PromptError(str(error), file=self.file)
        except PromptError as error:
            return error
        return Rendered(with_system(rendered.messages, self.config.system), sampling)

    def _known(self, sampling: Mapping[str, Any]) -> Iterable[tuple[str, Any]]:
        for name, value in sampling.items():
            if name == "model" and value != self.config.model:
                raise PromptError(f"a step asks for the model {value!r}; a chain runs on one model", file=self.file)
            if name not in ("model", *NAMES):
                raise PromptError(f"a step sets {name!r}, which is no sampling parameter", file=self.file)
            if name != "model":
                yield name, value
