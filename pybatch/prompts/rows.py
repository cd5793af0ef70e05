"""Rows that a prompt makes requests of: pybatch's own rows, with the prompt in place of their own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

from pybatch.api.inputs import Prompt as Asked
from pybatch.api.lora_names import adapter_params, named_adapters
from pybatch.api.outcomes import Failure, Outcome
from pybatch.api.protocols.messages import ROLES, expect_messages
from pybatch.api.protocols.request_error import RequestError
from pybatch.jobs.checked_rows import RowOptions
from pybatch.jobs.dialect import Dialect, RowRequest
from pybatch.jobs.dialects.plain import PlainDialect
from pybatch.jobs.dialects.row_params import row_params, row_standing
from pybatch.jobs.rows import Row, Source
from pybatch.prompts.errors import PromptError
from pybatch.prompts.prompt import Prompt
from pybatch.prompts.promptl_runtime import BATCH
from pybatch.prompts.rendering import Rendered

VERSION_FIELD = "prompt_version"


@dataclass(frozen=True, slots=True)
class PromptRow(Row):
    """A row that has been rendered, or cannot be."""

    asked: Rendered | Failure | None = None


@dataclass(frozen=True)
class PromptRows(PlainDialect):
    """Rows that a step of a prompt is filled in with. A result has the prompt's name and version too, and of a chain
    the answers of the steps before.

    A row that has not been rendered is only checked: its request has an empty prompt.
    """

    of: Prompt | None = None  # never; a field behind others that have defaults needs one
    step: int = 0

    def request(self, row: Row) -> RowRequest:
        if row.error is not None:
            raise RequestError(row.error, "invalid_json_line")
        name = row.fields.get("custom_id")
        id, standing = name if isinstance(name, str) else None, row_standing(row.fields)
        own = {**row_params(row.fields), **adapter_params(row.fields.get("model"), self.adapters)}
        asked = row.asked if isinstance(row, PromptRow) else None
        if isinstance(asked, Failure):
            raise RequestError(asked.message, asked.code, asked.param)
        if asked is None:
            self._check(row)
            return RowRequest(("",), own, id, standing)
        step = self._of.steps[self.step].sampling
        return RowRequest((self._prompt(asked),), {**step, **asked.sampling, **own}, id, standing)

    def prepared(self, rows: Iterator[Row], *, wait: bool) -> Iterator[Row]:
        """Rendered in batches, of which the first ones are small, so that the model has something to do soon."""
        size = 1
        while batch := list(islice(rows, size)):
            yield from self._rendered(batch)
            size = min(2 * size, BATCH) if wait else 1

    def result(self, row: Row, outcome: Outcome, *, fields: bool = True) -> dict[str, Any]:
        result = super().result(row, outcome, fields=fields)
        answers = {} if fields else {name: row.fields.get(name) for name in self._of.answers[: self.step]}
        return {**answers, **result, VERSION_FIELD: self._of.tag}

    @property
    def _of(self) -> Prompt:
        assert self.of is not None
        return self.of

    def _prompt(self, asked: Rendered) -> Asked:
        if isinstance(asked.messages, str):
            return self.text(asked.messages)
        asks = self.conversation(expect_messages(asked.messages, roles=ROLES))
        tools = self._of.config.tools
        return replace(asks, options={"tools": list(tools)}) if tools else asks

    def _check(self, row: Row) -> None:
        try:
            self._of.check(row.fields, self.step)
        except PromptError as error:
            failure = failure_of(error)
            raise RequestError(failure.message, failure.code, failure.param) from None

    def _rendered(self, rows: Sequence[Row]) -> Iterator[Row]:
        asked: dict[int, Rendered | PromptError] = {}
        for number, row in enumerate(rows):
            if row.error is None and not isinstance(row, PromptRow):
                try:
                    self._of.expect_fields(row.fields, self.step)
                except PromptError as error:
                    asked[number] = error
        open_ones = [number for number, row in enumerate(rows)
                     if row.error is None and not isinstance(row, PromptRow) and number not in asked]  # fmt: skip
        made = self._of.render_each([rows[number].fields for number in open_ones], self.step)
        asked |= zip(open_ones, made, strict=True)
        for number, row in enumerate(rows):
            yield row if number not in asked else prompt_row(row, asked[number])


def prompt_row(row: Row, asked: Rendered | PromptError | Failure) -> PromptRow:
    made = failure_of(asked) if isinstance(asked, PromptError) else asked
    return PromptRow(row.index, row.place, row.size, row.fields, row.error, made)


def failure_of(error: PromptError) -> Failure:
    if error.variable is not None:
        return Failure(str(error), "missing_required_parameter", error.variable)
    return Failure(str(error), "invalid_prompt")


@dataclass(frozen=True)
class PromptOptions(RowOptions):
    """How a prompt reads rows."""

    prompt: Prompt | None = None
    step: int = 0

    def dialect(self, source: Source, created: int) -> tuple[Dialect, Source]:
        if self.format not in (None, PlainDialect.name):
            raise ValueError(f"prompt: rows of {self.format} say themselves what the prompt is")
        for name, given in (("prompt_template", self.prompt_template), ("system", self.system)):
            if given is not None:
                raise ValueError(f"{name}: the prompt says it already; expected one of both")
        adapters = named_adapters(self.lora_modules)
        return PromptRows(chat=not self.raw, adapters=adapters, of=self.prompt, step=self.step), source

    def fingerprint(self) -> dict[str, Any]:
        assert self.prompt is not None
        of_chain: Mapping[str, Any] = {"step": self.prompt.steps[self.step].name} if self.prompt.is_chain else {}
        return {"prompt": self.prompt.tag, **({"raw": True} if self.raw else {}), **of_chain}
