"""What the languages of templates have in common."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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


def expect_variables(template: Template, row: Row) -> None:
    """Raises PromptError for the first variable that a row lacks."""
    for name in template.variables:
        if name not in row:
            there = ", ".join(map(repr, row)) or "nothing"
            raise PromptError(f"the prompt asks for {name!r}; the row has {there:.200}", variable=name)
