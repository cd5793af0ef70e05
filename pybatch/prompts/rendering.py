"""What the languages of templates have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from pybatch.api.inputs import Message
from pybatch.prompts.errors import PromptError

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Rendered:
    """What a step asks of the model for one row. messages: or text, which becomes a user's message where the model has
    a chat template. sampling: fields of SamplingParams that the template itself has set."""

    messages: str | list[Message]
    sampling: Mapping[str, Any] = field(default_factory=dict)


class Template(Protocol):
    """A compiled template.

    variables: that rows must have, in the order of their first use. optional: that they may have. files: the texts of
    what it includes, by their names.
    """

    variables: tuple[str, ...]
    optional: tuple[str, ...]
    files: Mapping[str, str]

    def render(self, rows: Sequence[Row]) -> list[Rendered | PromptError]:
        """One for each row, whose values alone are at fault where it is an error."""

    def check(self, row: Row) -> None:
        """What can be told of a row's values without taking long. Raises PromptError."""


class RowTemplate(ABC):
    """A template that renders each row by itself."""

    variables: tuple[str, ...]

    @abstractmethod
    def _fill(self, row: Row) -> str | list[Message]:
        """Of a row that has all variables. Raises PromptError."""

    def check(self, row: Row) -> None:
        expect_variables(self.variables, row)
        self._fill(row)

    def render(self, rows: Sequence[Row]) -> list[Rendered | PromptError]:
        return [self._render(row) for row in rows]

    def _render(self, row: Row) -> Rendered | PromptError:
        try:
            expect_variables(self.variables, row)
            return Rendered(self._fill(row))
        except PromptError as error:
            return error


def expect_variables(variables: Iterable[str], row: Row) -> None:
    """Raises PromptError for the first variable that a row lacks."""
    for name in variables:
        if name not in row:
            there = ", ".join(map(repr, row)) or "nothing"
            raise PromptError(f"the prompt asks for {name!r}; the row has {there:.200}", variable=name)
