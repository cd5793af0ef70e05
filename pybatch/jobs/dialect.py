"""How rows ask and how their results are written: pybatch's own rows, OpenAI's and Anthropic's batches."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

from pybatch.api.inputs import Prompt
from pybatch.api.outcomes import Failure, Outcome
from pybatch.api.pairs import Pair
from pybatch.api.protocols.request_error import RequestError
from pybatch.engine.pooling_params import PoolingParams
from pybatch.engine.standing import ORDINARY, Standing
from pybatch.jobs.rows import Row


@dataclass(frozen=True, slots=True)
class RowRequest:
    """What a row asks for. prompts: one or more, each of which runs as a request of its own. params: fields of
    SamplingParams that the row sets, over the job's own. id: the row's own name, which no other row may have; None if
    it has none. standing: when the row runs beside others. pooling: in place of params, of one that generates
    nothing. pairs: in place of prompts, of one for scores: how many prompts they become depends on the model. names: as
    Generation's."""

    prompts: tuple[Prompt, ...]
    params: Mapping[str, Any] = field(default_factory=dict)
    id: str | None = None
    standing: Standing = ORDINARY
    pooling: PoolingParams | None = None
    pairs: tuple[Pair, ...] = ()
    names: Mapping[str, str] = field(default_factory=dict)


class Dialect(Protocol):
    """A format of rows. Needs neither model nor tokenizer, so that rows can be checked before these are loaded.

    name: one of dialects.choose.DIALECTS. apart: whether rows that fail are written to the error file alone, or to the
    results too. extends_rows: whether a result is the row with fields after it, to which others may be added, and which
    tables can hold as columns; else it is a document with a fixed shape.
    """

    name: ClassVar[str]
    apart: ClassVar[bool]
    extends_rows: ClassVar[bool]

    def request(self, row: Row) -> RowRequest:
        """Raises ValueError (a RequestError where it has a code) for a row that does not ask properly."""

    def prepared(self, rows: Iterator[Row], *, wait: bool) -> Iterator[Row]:
        """Rows that are about to be answered, in their order, with what takes long done for several at once: it is
        called where rows are read ahead, beside the model. wait: rows may wait for those behind them."""

    def result(self, row: Row, outcome: Outcome, *, fields: bool = True) -> dict[str, Any]:
        """The result row, in types that JSON has. outcome: of several prompts as RequestPlan.answer has it.
        fields: with those of the row."""


def request_of(dialect: Dialect, row: Row) -> RowRequest | Failure:
    """What a row asks for, or what is wrong with it, which nesting too deep for Python can be too."""
    try:
        return dialect.request(row)
    except RequestError as error:
        return Failure(str(error), error.code, error.param)
    except (ValueError, RecursionError) as error:
        return Failure(str(error))
