"""Rows whose results have the fields that the job names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from pybatch.api.outcomes import Failure, Outcome
from pybatch.api.protocols.request_error import RequestError
from pybatch.jobs.dialect import RowRequest
from pybatch.jobs.dialects.plain import RESULT_FIELDS, PlainDialect
from pybatch.jobs.dialects.template import Template
from pybatch.jobs.rows import Row


@dataclass(frozen=True)
class MappedRows(PlainDialect):
    """pybatch's own rows, with results that have no other fields than those of `output`.

    output: by the name of each field a template, which is filled in with what the result would have otherwise: the
    row's own fields, and "response" and the like. One that is a single field has its value, text or not. In a row that
    failed, what its answer would have filled is null, and "error" stands beside it.
    """

    extends_rows: ClassVar[bool] = False

    output: Mapping[str, Template] = field(default_factory=dict)

    def request(self, row: Row) -> RowRequest:
        request = super().request(row)
        for name, template in self.output.items():
            for asked in template.fields:
                if asked not in RESULT_FIELDS and asked not in row.fields:
                    there = ", ".join(map(repr, (*row.fields, *RESULT_FIELDS)))
                    raise RequestError(
                        f"output {name!r} asks for {asked!r}; a result has {there}", "missing_required_parameter", asked
                    )
        return request

    def result(self, row: Row, outcome: Outcome, *, fields: bool = True) -> dict[str, Any]:
        whole = super().result(row, outcome)
        mapped = {
            name: template.value_of(whole) if all(asked in whole for asked in template.fields) else None
            for name, template in self.output.items()
        }
        return {**mapped, "error": whole["error"]} if isinstance(outcome, Failure) else mapped
