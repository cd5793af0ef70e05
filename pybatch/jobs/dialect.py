"""How rows ask and how their results are written: pybatch's own rows, OpenAI's and Anthropic's batches."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from pybatch.api.inputs import Prompt
from pybatch.jobs.outcomes import Outcome
from pybatch.jobs.rows import Row


class RowError(ValueError):
    """What is wrong with a row. code: as Failure's."""

    def __init__(self, message: str, code: str = "invalid_request") -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True, slots=True)
class RowRequest:
    """What a row asks for. params: fields of SamplingParams that the row sets, over the job's own. id: the row's own
    name, which no other row may have; None if it has none."""

    prompt: Prompt
    params: Mapping[str, Any] = field(default_factory=dict)
    id: str | None = None


class Dialect(Protocol):
    """A format of rows. Needs neither model nor tokenizer, so that rows can be checked before these are loaded.

    apart: whether rows that fail are written to the error file alone, or to the results too.
    """

    apart: bool

    def request(self, row: Row) -> RowRequest:
        """Raises ValueError (a RowError where it has a code) for a row that does not ask properly."""

    def result(self, row: Row, outcome: Outcome, *, fields: bool = True) -> dict[str, Any]:
        """The result row, in types that JSON has. fields: with those of the row."""
