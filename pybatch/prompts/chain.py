"""A chain over a whole data set: each step is a job of its own, whose rows have the answers of the steps before.

So every step is a full batch, and what is done of it stays done: each has its results and its journal, beside those of
the last one.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from tempfile import TemporaryDirectory
from typing import Any

from pybatch.api.outcomes import Failure
from pybatch.jobs.checked_rows import CheckedRows
from pybatch.jobs.results.destination import STANDARD, Destination
from pybatch.jobs.rows import Row, Source
from pybatch.jobs.sources.faults import unreadable
from pybatch.prompts.rows import PromptOptions, PromptRows, prompt_row


@dataclass(frozen=True)
class StepJob:
    """name: of the step; None where there is only one."""

    rows: CheckedRows
    destination: Destination
    name: str | None = None
    last: bool = True


def step_jobs(rows: CheckedRows, to: Destination, opened: ExitStack, sampling: Mapping[str, Any]) -> list[StepJob]:
    """The jobs of which the rows' prompt consists, in their order: one where there is no chain, or no prompt.

    opened: keeps a folder of answers, where the last results go to no file that others could stand beside. sampling: of
    all rows. Raises ValueError for rows that can be read only once, and for several samples of a step that others need.
    """
    options = rows.options
    if not (isinstance(options, PromptOptions) and options.prompt is not None and options.prompt.is_chain):
        return [StepJob(rows, to)]
    if not rows.source.rereadable:
        raise ValueError(f"{rows.source.name} can be read only once, and a chain reads its rows once a step")
    if sampling.get("n", 1) != 1:
        raise ValueError("n: a chain takes one answer a step")
    steps = options.prompt.steps
    beside = to.stem
    if to.output is None or to.output == STANDARD:
        beside = f"{opened.enter_context(TemporaryDirectory(prefix='pybatch-chain-'))}/answers"
    jobs: list[StepJob] = []
    for number, step in enumerate(steps):
        last = number == len(steps) - 1
        place = f"{beside}.{number + 1}-{step.name}.jsonl"
        own = to if last else Destination(place, fresh=to.fresh, retry_errors=to.retry_errors)
        before = [(job.name or "", job.destination.output or "") for job in jobs]
        assert isinstance(rows.dialect, PromptRows)
        its_rows = replace(
            rows,
            source=ChainSource(rows.source, before) if before else rows.source,
            dialect=replace(rows.dialect, step=number),
            options=replace(options, step=number),
        )
        jobs.append(StepJob(its_rows, own, step.name, last))
    return jobs


class ChainSource:
    """Rows with the answers of earlier steps as fields. A row that a step has failed is that step's failure."""

    def __init__(self, source: Source, answers: Sequence[tuple[str, str]]) -> None:
        """answers: the names of the steps, each with the file of its results."""
        self._source, self._answers = source, answers
        self.name, self.rereadable, self.typed = source.name, source.rereadable, source.typed

    def rows(self) -> Iterator[Row]:
        with ExitStack() as opened:
            files = [opened.enter_context(open(path, encoding="utf-8")) for _, path in self._answers]
            for row in self._source.rows():
                lines = [file.readline() for file in files]
                yield self._joined(row, lines) if row.error is None else row

    def digest(self) -> str | None:
        return self._source.digest()

    def __getattr__(self, name: str) -> Any:
        """Of typed sources: their schema and batches."""
        return getattr(self._source, name)

    def _joined(self, row: Row, lines: Sequence[str]) -> Row:
        fields = dict(row.fields)
        for (name, path), line in zip(self._answers, lines, strict=True):
            try:
                result = json.loads(line)
                index = result["row"]
            except (ValueError, TypeError, KeyError):
                raise unreadable(path, f"expected the result of row {row.index}, got {line!r:.80}") from None
            if index != row.index:
                raise unreadable(path, f"expected the result of row {row.index}, got that of row {index}")
            answer = result.get("response")
            if not isinstance(answer, str):
                error = str(result.get("error", "expected one answer, got several")).removeprefix(f"{row.place}: ")
                message = error if error.startswith("step ") else f"step {name!r}: {error}"
                return prompt_row(replace(row, fields=fields), Failure(message, "earlier_step_failed"))
            fields[name] = answer
        return replace(row, fields=fields)
