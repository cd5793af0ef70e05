"""Batches of rows in any shape: which of their fields become prompts, and what becomes of the answers."""

from __future__ import annotations

from collections.abc import Mapping as AnyMapping
from dataclasses import asdict, dataclass, field
from typing import Any

from pybatch.api.protocols.fields import expect_fields, expect_type
from pybatch.api.protocols.request_error import RequestError
from pybatch.api.protocols.sampling import NAMES, expect_params, token_biases
from pybatch.engine.arguments import expect_known
from pybatch.jobs.checked_rows import RowOptions
from pybatch.jobs.dialects.choose import ROWS
from pybatch.jobs.dialects.template import Template
from pybatch.jobs.results.tables.formats import OUTPUT_FORMATS, table_format
from pybatch.jobs.sources.formats import INPUT_FORMATS, format_of


@dataclass(frozen=True)
class Mapping:
    """The object "mapping" in the body that creates a batch.

    prompt_template: the prompt, with {field} where a row's field goes; None: rows have "prompt" or "messages".
    system: a system message in front of it. params: of SamplingParams, for rows to change. output: the fields of a
    result by name, each a template over the row's fields and the answer's; None: all of these. input_format,
    output_format: of the files; None: by the input's name, and as the input where it is a table.
    """

    prompt_template: str | None = None
    system: str | None = None
    params: AnyMapping[str, Any] = field(default_factory=dict)
    output: AnyMapping[str, str] | None = None
    input_format: str | None = None
    output_format: str | None = None

    @classmethod
    def from_body(cls, body: Any) -> Mapping:
        """Raises RequestError."""
        expect_fields(expect_type("mapping", body, dict, "an object"), cls.__dataclass_fields__, {})
        given = {name: value for name, value in body.items() if value is not None}
        for name in ("prompt_template", "system"):
            expect_type(f"mapping.{name}", given.get(name, ""), str, "text")
        params = expect_type("mapping.params", given.get("params", {}), dict, "an object")
        output = expect_type("mapping.output", given.get("output", {}), dict, "an object")
        for name, text in output.items():
            expect_type(f"mapping.output.{name:.80}", text, str, "a template, such as '{response}'")
            expect_template(f"mapping.output.{name:.80}", text)
        expect_template("mapping.prompt_template", given.get("prompt_template", ""))
        try:
            expect_known("mapping.params", params, NAMES)
        except TypeError as error:
            raise RequestError(str(error), "unknown_parameter", "mapping.params") from None
        params = {name: token_biases(value) if name == "logit_bias" else value for name, value in params.items()}
        expect_params(params)
        for name, known in (("input_format", INPUT_FORMATS), ("output_format", OUTPUT_FORMATS)):
            if given.get(name) not in (None, *known):
                message = f"mapping.{name}: expected one of {', '.join(known)}, got {given[name]!r:.80}"
                raise RequestError(message, "invalid_value", f"mapping.{name}")
        mapping = cls(**{**given, "params": params})
        try:
            table_format(f"results.{mapping.output_format}")
        except ValueError as error:  # a package that is needed
            raise RequestError(str(error), "invalid_value", "mapping.output_format") from None
        return mapping

    def to_json(self) -> dict[str, Any]:
        """What from_body takes."""
        return {name: value for name, value in asdict(self).items() if value not in (None, {})}

    def options(self, *, raw: bool) -> RowOptions:
        """raw: prompts are completed as they are."""
        return RowOptions(ROWS, self.prompt_template, self.system, raw, self.output)


def input_format(mapping: Mapping | None, filename: str) -> str:
    """Of a batch's file. Rows in OpenAI's shape are lines, whatever the file is called."""
    if mapping is None:
        return "jsonl"
    return mapping.input_format or format_of(filename) or "jsonl"


def output_format(mapping: Mapping | None, filename: str) -> str:
    """Of the results: a table of the kind that the input is, or JSON Lines."""
    if mapping is None:
        return "jsonl"
    same = input_format(mapping, filename)
    return mapping.output_format or (same if same in OUTPUT_FORMATS else "jsonl")


def expect_template(where: str, text: str) -> None:
    try:
        Template(text)
    except ValueError as error:
        raise RequestError(f"{where}: {error}", "invalid_value", where) from None
