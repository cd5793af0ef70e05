"""The rows of a batch: how they are read, and what spoils a batch as a whole."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from pybatch.api.async_llm import AsyncLLM
from pybatch.api.outcomes import Failure
from pybatch.api.protocols.sampling import merged
from pybatch.engine import SamplingParams
from pybatch.engine.pooling_params import Params
from pybatch.jobs.check import Checked, check_rows
from pybatch.jobs.checked_rows import CheckedRows, RowOptions
from pybatch.jobs.dialect import RowRequest
from pybatch.jobs.dialects.anthropic_batch import AnthropicBatch
from pybatch.jobs.dialects.choose import OPENAI
from pybatch.jobs.dialects.openai_batch import COMPLETIONS_URL, OpenAIBatch, spoils_batch
from pybatch.jobs.rows import Row, Source
from pybatch.jobs.sources import open_source
from pybatch.serve.batches.mapping import Mapping, input_format
from pybatch.serve.bounds import expect_bounded, expect_few
from pybatch.serve.store import Batch

SHOWN = 100  # errors that are kept of a batch that failed


class BatchFaultError(Exception):
    """A batch that cannot run. errors: OpenAI's, each with code, line, message and param."""

    def __init__(self, errors: list[dict[str, Any]]) -> None:
        super().__init__(errors[0]["message"])
        self.errors = errors


def fault(code: str, message: str, line: int | None = None, param: str | None = None) -> dict[str, Any]:
    return {"code": code, "line": line, "message": told(message), "param": None if param is None else told(param)}


def told(text: str) -> str:
    """Text that may quote a row's, with escapes for what UTF-8 lacks."""
    return text.encode(errors="backslashreplace").decode()


def mapping_of(batch: Batch) -> Mapping | None:
    return None if batch.mapping is None else Mapping.from_body(batch.mapping)


def read_rows(batch: Batch, path: Path, served: tuple[str, ...], llm: AsyncLLM) -> CheckedRows:
    """The rows of a batch that has been checked. served: the model's names. Raises OSError and ValueError."""
    vocab_size = llm.engine.decoder.config.vocab_size

    def expect_as_of_requests(asked: RowRequest, params: Params) -> None:
        expect_few(asked, vocab_size)
        expect_bounded(asked, params)

    mapping = mapping_of(batch)
    source = open_source(path, input_format(mapping, batch.filename))
    options = RowOptions(batch.format) if mapping is None else mapping.options(raw=batch.endpoint == COMPLETIONS_URL)
    options = replace(options, lora_modules=vars(llm.engine.config).get("lora_modules"))
    dialect, source = options.dialect(source, batch.created_at)
    if isinstance(dialect, OpenAIBatch):
        dialect = replace(dialect, url=batch.endpoint, served=served)
    elif isinstance(dialect, AnthropicBatch):
        dialect = replace(dialect, served=served)
    return CheckedRows(source, dialect, Checked(rows=batch.total, bound=expect_as_of_requests), options)


def params_of(batch: Batch) -> dict[str, Any]:
    """Sampling parameters that the batch sets for its rows."""
    mapping = mapping_of(batch)
    return {} if mapping is None else dict(mapping.params)


class PacedSource:
    """A source whose reader lets others run in between. pace: called after each row."""

    def __init__(self, source: Source, pace: Callable[[], object]) -> None:
        self.name, self.rereadable, self.typed = source.name, source.rereadable, source.typed
        self._source, self._pace = source, pace

    def rows(self) -> Iterator[Row]:
        for row in self._source.rows():
            yield row
            self._pace()

    def digest(self) -> str | None:
        return self._source.digest()


def check_batch(
    batch: Batch,
    path: Path,
    served: tuple[str, ...],
    llm: AsyncLLM,
    *,
    most: int,
    pace: Callable[[], object],
) -> tuple[int, str | None]:
    """Reads every row. Returns how many there are, and the model that they name.

    most: rows that a batch may have. pace: called after each row; what it raises ends the check. Raises BatchFaultError
    for a batch that cannot run: rows in OpenAI's shape if the line of one is not right, others if two have the same
    custom_id or no row is right.
    """
    fatal: list[dict[str, Any]] = []
    others: list[dict[str, Any]] = []

    def watch(row: Row, failure: Failure) -> None:
        spoiling = spoils_batch(failure) if batch.format == OPENAI else failure.code == "duplicate_custom_id"
        found = fatal if spoiling else others
        if len(found) < SHOWN:
            found.append(fault(failure.code, failure.message, number_of(row.place), failure.param))

    try:
        rows = read_rows(batch, path, served, llm)
        params = merged(SamplingParams(max_tokens=None), params_of(batch))
        checked = check_rows(PacedSource(rows.source, pace), rows.dialect, params, watch, rows.checked.bound)
    except OSError as error:
        raise BatchFaultError([fault("invalid_file", f"{batch.filename}: {error.strerror}")]) from error
    except ValueError as error:
        raise BatchFaultError([fault("invalid_file", str(error).replace(str(path), batch.filename))]) from error
    if not checked.rows:
        raise BatchFaultError([fault("empty_file", f"{batch.filename}: there are no requests in it")])
    if checked.rows > most:
        message = f"{batch.filename}: expected at most {most:,} requests, got {checked.rows:,}"
        raise BatchFaultError([fault("too_many_requests", message)])
    if fatal or (batch.format != OPENAI and checked.bad.total() == checked.rows):
        raise BatchFaultError(fatal or others)
    of_rows = rows.dialect.model if isinstance(rows.dialect, OpenAIBatch) else None
    return checked.rows, of_rows or served[0]


def number_of(place: str) -> int | None:
    """The number in "line 7"."""
    last = place.rpartition(" ")[2]
    return int(last) if last.isdecimal() else None
